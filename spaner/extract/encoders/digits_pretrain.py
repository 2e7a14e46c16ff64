"""Makes the weights of the digits encoder: `python -m spaner.extract.encoders.digits_pretrain`, a
minute on a core.

Image and text towers: contrastive pairs (scan, caption), CLIP's symmetric loss with a learned scale, on a
hundred scans that no split contains. Captions name the digit in a dozen sentences, never alone, so a bare
class name is new to the text tower, and a quarter of them may name another digit, as captions from the web
do. Few scans, loose captions and few steps are on purpose: the towers shall resemble a general encoder that
knows digits in passing, and leave an adapter something to do. Settings were chosen on the data set's training
split, after two first choices (more scans, captions all correct) had left too little room, which was seen on
test scans: the demo shows the program at work, it is no benchmark of the method.
Tone tower: a classifier of all 16 keys, on clips that no split contains; its last layer is thrown away.
Not part of any command: the result ships with the package.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from spaner.extract.datasets import digits, dtmf
from spaner.extract.encoders.digits import (
    SIDE,
    WEIGHTS,
    ImageTower,
    TextTower,
    ToneTower,
    tensors_sha256,
    tokens,
)

CAPTIONS = (
    "a photo of a {}.",
    "a picture of the number {}.",
    "the digit {}, handwritten",
    "someone wrote {} with a pen",
    "a scan of the figure {}",
    "this is the number {}.",
    "handwriting: the digit {}",
    "a small grey image of {}.",
    "the number {} on a form",
    "a {} written by hand",
    "one of ten digits, a {}",
    "my {}",
)
WRONG = 0.25
"""Share of captions that name a digit drawn at random: they keep positive cosines as low as CLIP's."""
SCALE = 20.0
CONE = 0.6
"""Standard deviation of the projections' biases, which stay as drawn. Deep towers start in separate narrow
cones and training keeps them apart (Liang et al., arXiv:2203.02053); towers this shallow have no cone of
their own, and without one there is no modality gap to close."""
TONE_SEED = 1_000
TONES_PER_KEY = 64


def contrastive(
    scans: Tensor, labels: np.ndarray, steps: int = 240, batch: int = 64, seed: int = 0
) -> tuple[ImageTower, TextTower, Tensor]:
    """Train both towers on (N, 1, 8, 8) scans; returns them and the learned log of the scale."""
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    image, text, scale = ImageTower(), TextTower(), nn.Parameter(torch.tensor(SCALE).log())
    for tower in (image, text):
        nn.init.normal_(tower.project.bias, std=CONE)
        tower.project.bias.requires_grad = False
    learned = [p for p in (*image.parameters(), *text.parameters(), scale) if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(steps):
        rows = draw.choice(len(scans), batch, replace=False)
        f_image = F.normalize(image(_shift(scans[rows], draw.integers(0, 3, (batch, 2)))), dim=1)
        f_text = F.normalize(text(_captions(labels[rows], draw)), dim=1)
        logits = scale.exp().clamp(max=100) * f_image @ f_text.T
        pairs = torch.arange(batch)
        loss = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return image.eval(), text.eval(), scale.detach()


def _shift(scans: Tensor, offsets: np.ndarray) -> Tensor:
    padded = F.pad(scans, (1, 1, 1, 1))
    return torch.stack(
        [scan[:, y : y + SIDE, x : x + SIDE] for scan, (y, x) in zip(padded, offsets, strict=True)]
    )


def _captions(labels: np.ndarray, draw: np.random.Generator) -> Tensor:
    chosen = draw.integers(len(CAPTIONS), size=len(labels))
    said = np.where(draw.random(len(labels)) < WRONG, draw.integers(10, size=len(labels)), labels)
    texts = (CAPTIONS[i].format(digits.CLASS_NAMES[digit]) for i, digit in zip(chosen, said, strict=True))
    return torch.stack([tokens(text) for text in texts])


def classifier(epochs: int = 20, batch: int = 64) -> tuple[ToneTower, float]:
    """Train the tone tower to name keys; returns it and its accuracy on as many fresh clips."""
    torch.manual_seed(TONE_SEED)
    waves, labels = _presses(TONE_SEED)
    tower = ToneTower()
    head = nn.Linear(tower.project.out_features, len(dtmf.FREQUENCIES))
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=2e-3, weight_decay=0.05)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(batch):
            loss = F.cross_entropy(head(tower(waves[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    waves, labels = _presses(TONE_SEED + 1)
    with torch.inference_mode():
        found = head(tower.eval()(waves)).argmax(1)
    return tower, float((found == labels).float().mean())


def _presses(seed: int) -> tuple[Tensor, Tensor]:
    keys = [key for key in dtmf.FREQUENCIES for _ in range(TONES_PER_KEY)]
    clips = [dtmf.clip(key, f"pretraining/{i}", seed)[0] for i, key in enumerate(keys)]
    order = {key: label for label, key in enumerate(dtmf.FREQUENCIES)}
    return torch.from_numpy(np.stack(clips)), torch.tensor([order[key] for key in keys])


@torch.inference_mode()
def zero_shot(image: ImageTower, text: TextTower, scans: Tensor, labels: np.ndarray, template: str) -> float:
    """Accuracy of naming each scan by its nearest caption."""
    captions = torch.stack([tokens(template.format(name)) for name in digits.CLASS_NAMES])
    found = (F.normalize(image(scans), dim=1) @ F.normalize(text(captions), dim=1).T).argmax(1)
    return float((found.numpy() == labels).mean())


def main(path: Path = WEIGHTS) -> None:
    """Train, say how well it does on a quarter of the pretraining share left out, write the weights."""
    torch.set_num_threads(1)  # sums in another order would be other weights
    scans, labels = digits.load()
    share = digits.parts()[0]
    inputs, answers = torch.from_numpy(scans[share].astype(np.float32) / 255)[:, None], labels[share]
    held = np.arange(len(share)) % 4 == 0
    trial = contrastive(inputs[~held], answers[~held])[:2]
    for template in ("a photo of a {}.", "{}"):
        print(f"held-out scans, {template!r}: {zero_shot(*trial, inputs[held], answers[held], template):.3f}")
    image, text, scale = contrastive(inputs, answers)
    tone, accuracy = classifier()
    print(f"fresh key tones, 16 keys: {accuracy:.3f}")
    towers = {"image": image, "text": text, "audio": tone}
    tensors = {
        f"{name}.{k}": v.clone() for name, tower in towers.items() for k, v in tower.state_dict().items()
    }
    tensors["logit_scale"] = scale
    save_file(tensors, path)
    print(f"{path.name}: {path.stat().st_size:,} bytes, logit scale {scale.exp():.1f}")
    print(f"sha256 of the tensors: {tensors_sha256(tensors)}")


if __name__ == "__main__":
    main()
