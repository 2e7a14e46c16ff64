"""Weights and waveforms of the golden files, rebuilt from each file's own metadata.

Everything comes from `RandomState(crc32(text)).random_sample`, a frozen bit-exact stream: one per state-dict
entry and one per waveform channel. Two checksums tell a wrong rebuild from a wrong network.
"""

import math
import zlib

import numpy as np

SR = 44100


def rng(text):
    """Legacy Mersenne-Twister stream; only random_sample() is used, so it is bit-exact everywhere."""
    return np.random.RandomState(zlib.crc32(text.encode("utf-8")) & 0xFFFFFFFF)


def fill_value(tag, key, shape):
    """Array for one state-dict entry from (tag, key, shape) alone; `window` keeps the real window."""
    shape = tuple(shape)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    u = rng(tag + "|" + key).random_sample(shape)  # float64 in [0, 1), C order
    last = key.rsplit(".", 1)[-1]
    stem = key.startswith("bn1.")
    att_bn = key.startswith("att") and ".bn." in key
    bn3 = ".bn3." in key
    down_bn = ".downsample.1." in key
    is_bn = stem or att_bn or down_bn or any(s in key for s in (".bn1.", ".bn2.", ".bn3."))
    if key == "fbsp.m":
        v = u - 0.05
    elif key == "fbsp.fb":
        v = 0.5 + u
    elif key == "fbsp.fc":
        v = np.arange(shape[0]) + 0.8 * (u - 0.5)
    elif key == "fbsp.bias":  # shape (0,)
        v = u
    elif is_bn and last == "weight":
        v = (0.5 + u) * (0.4 if bn3 else 1.25 if down_bn else 1.0)
    elif is_bn and last == "bias":
        v = 0.4 * (u - 0.5)
    elif is_bn and last == "running_mean":
        v = (4.0 if stem else 0.4) * (u - 0.5)
    elif is_bn and last == "running_var":
        v = (150.0 if stem else 12.0 if att_bn else 1.0) * (0.5 + u)
    elif last == "weight" and len(shape) == 4:  # convolutions
        v = (2.0 * u - 1.0) * math.sqrt(6.0 / (shape[1] * shape[2] * shape[3]))
        if key == "conv1.weight":  # stem filters without a DC response
            v = v - v.mean(axis=(1, 2, 3), keepdims=True)
    elif last == "weight" and len(shape) == 2:  # fc
        v = (2.0 * u - 1.0) * math.sqrt(3.0 / shape[1])
    elif last == "bias":  # fc.bias and the attention convolutions' biases
        v = 0.2 * (u - 0.5)
    else:
        raise KeyError(key)
    return v.astype(np.float32)


def wave(kind, seed_text, n):
    """one channel: int16 array of length n"""
    if kind == "zeros":
        return np.zeros(n, dtype=np.int16)
    r = rng(seed_text)
    t = np.arange(n) / SR
    dur = n / SR
    floor = 0.004 * (2.0 * r.random_sample(n) - 1.0)  # dither: keeps every log-power well conditioned
    p = r.random_sample(16)
    two_pi = 2.0 * math.pi
    if kind == "sweep":  # exponential sine sweep
        f0, f1 = 60.0 + 60.0 * p[0], 12000.0 + 6000.0 * p[1]
        k = math.log(f1 / f0)
        y = 0.5 * np.sin(two_pi * f0 * dur / k * (np.exp(k * t / dur) - 1.0))
    elif kind == "noise":  # slowly modulated white noise
        env = 0.55 + 0.45 * np.sin(two_pi * ((0.3 + p[0]) * t + p[1]))
        y = 0.5 * env * (2.0 * r.random_sample(n) - 1.0)
    elif kind == "tones":  # five amplitude-modulated sinusoids
        y = np.zeros(n)
        for i in range(5):
            f = 100.0 * 2.0 ** (6.5 * p[i])
            y = y + 0.12 * np.sin(two_pi * (f * t + p[5 + i])) * (0.6 + 0.4 * np.sin(two_pi * (1 + i) * t))
    elif kind == "clicks":  # decaying resonances at random times
        y = np.zeros(n)
        m = max(3, int(6 * dur))
        pos, fr = r.random_sample(m), r.random_sample(m)
        for a, f in zip(pos, fr, strict=True):
            s = int(a * n)
            tt = t[: n - s]
            y[s:] = y[s:] + 0.4 * np.exp(-60.0 * tt) * np.sin(two_pi * (300.0 + 6000.0 * f) * tt)
    elif kind == "vibrato":  # harmonic tone with vibrato
        f = 150.0 + 500.0 * p[0]
        ph = two_pi * f * t + 12.0 * np.sin(two_pi * (3.0 + 3.0 * p[1]) * t)
        y = sum(0.3 / h * np.sin(h * ph) for h in range(1, 9))
    elif kind == "steps":  # noise whose level steps by 6 dB every 8th of the clip
        lev = 0.7 * 2.0 ** (-np.floor(8.0 * np.arange(n) / n))
        y = lev * (2.0 * r.random_sample(n) - 1.0)
    elif kind == "halfsilent":  # second half exactly 0 (ill-conditioned on purpose)
        y = 0.4 * np.sin(two_pi * (200.0 + 3000.0 * p[0]) * t)
        z = np.clip(np.rint(32768.0 * (y + floor)), -32768, 32767)
        z[n // 2 :] = 0.0
        return z.astype(np.int16)
    else:
        raise ValueError(kind)
    return np.clip(np.rint(32768.0 * (y + floor)), -32768, 32767).astype(np.int16)


def build_input(meta):
    """float32 array [batch, channels, length] for a case's metadata"""
    x = np.stack(
        [
            np.stack(
                [wave(kind, f"{meta['tag']}|wave|{b}|{c}", meta["length"]) for c, kind in enumerate(kinds)]
            )
            for b, kinds in enumerate(meta["waves"])
        ]
    )
    assert zlib.crc32(x.astype("<i2").tobytes()) == meta["waves_crc32"], "waveforms differ from the recipe"
    x = x.astype(np.float32)
    return x / np.float32(32768.0) if meta["range"] == "unit" else x


def build_state(meta, entries):
    """{key: array} for every key but `window`; entries = content of golden/esresnext_state_dict.json."""
    out = {}
    for key, shape, _ in entries:
        if key == "window":
            continue
        if key in ("fc.weight", "fc.bias"):  # the only shapes that depend on num_classes
            shape = [meta["num_classes"], *shape[1:]]
        n = shape[0] if shape else 0
        if meta["fbsp"] == "init" and key == "fbsp.m":
            out[key] = np.zeros(n, dtype=np.float32)
        elif meta["fbsp"] == "init" and key == "fbsp.fb":
            out[key] = np.ones(n, dtype=np.float32)
        elif meta["fbsp"] == "init" and key == "fbsp.fc":
            out[key] = np.arange(n).astype(np.float32)
        else:
            out[key] = fill_value(meta["tag"], key, shape)
    crc = 0
    for key in sorted(out):
        crc = zlib.crc32(np.ascontiguousarray(out[key]).tobytes(), crc)
    assert crc == meta["state_crc32"], "weights differ from the recipe"
    return out
