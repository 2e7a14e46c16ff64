"""SPANER as a scikit-learn estimator: a transformer into the shared space, and a classifier by class names.

    from spaner.sklearn import Aligner
    Aligner(texts=class_vectors, epochs=5).fit(x, y).predict(x_test)

`x` are embeddings of a frozen encoder (N, D), `y` labels of any kind, `texts` one vector per class in the
order of `np.unique(y)`, from the text tower of that encoder. Without `texts` a class is described by the mean
of its own unit rows, so that the estimator works where there are no words. It does not read a cache.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from spaner.align.methods.task import Draw, Query, Task, Texts
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import fit
from spaner.cache import EncoderSpec

TINY = float(np.finfo(np.float32).tiny)


class Aligner(ClassifierMixin, TransformerMixin, BaseEstimator):
    """SPANER on arrays.

    Args:
        texts: (C, D) class vectors in the order of the sorted labels; None: each class's mean row.
        recipe: of SPANER's settings.
        epochs, batch_size, lr, prompt_length, heads: as `spaner train` takes them.
        logit_scale: 1 / temperature.
        random_state: seed.

    Attributes:
        classes_: sorted labels. n_features_in_: D. run_: the trained run.
    """

    def __init__(
        self,
        texts: Any = None,
        *,
        recipe: str = "anchored",
        epochs: int = 10,
        batch_size: int = 64,
        lr: float = 1e-3,
        prompt_length: int = 2,
        heads: int = 1,
        logit_scale: float = 20.0,
        random_state: int = 0,
    ) -> None:
        self.texts = texts
        self.recipe = recipe
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.prompt_length = prompt_length
        self.heads = heads
        self.logit_scale = logit_scale
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn should know: vectors come as float32, whatever went in."""
        tags: Any = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags

    def fit(self, X: Any, y: Any) -> Aligner:
        """Train prompt, aligners and projections on rows (N, D) and labels (N,).

        Raises:
            ValueError: what scikit-learn's validation raises, or texts of another shape.
        """
        checked: Any = validate_data(self, X, y, dtype=np.float32)
        X, y = checked
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, {self.classes_[0]!r}; expected at least two")
        self.texts_ = self._texts(X, labels)
        config = TrainConfig.from_recipe(
            self.recipe,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            prompt_length=self.prompt_length,
            heads=self.heads,
            seed=int(self.random_state or 0),
            device="cpu",
        )
        self.run_ = fit(_task(_unit(X), labels, self.texts_, float(self.logit_scale)), config)
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "N E"]:
        """Unit vectors of the shared space."""
        check_is_fitted(self)
        return self.run_.embed("image", self._rows(X))

    def decision_function(self, X: Any) -> Float[np.ndarray, "N C"]:
        """Logits per class; for two classes the second minus the first, (N,), as scikit-learn has it."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> Float[np.ndarray, "N C"]:
        """Softmax of the logits."""
        logits = self._logits(X)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The label of the nearest class."""
        best = self._logits(X).argmax(axis=1)
        return self.classes_[best]

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the space's axes: aligner0, aligner1 …"""
        check_is_fitted(self)
        width = self.run_.embed("text", self.texts_[:1]).shape[1]
        return np.array([f"aligner{i}" for i in range(width)], dtype=object)

    def _logits(self, X: Any) -> Float[np.ndarray, "N C"]:
        check_is_fitted(self)
        x = self._rows(X)
        texts = torch.from_numpy(self.texts_)[:, None]
        query = Query("text", self.run_.class_names, Texts(texts, torch.ones(texts.shape[:2])))
        return (self.run_.scores("image", x, query) * self.logit_scale).astype(np.float64)

    def _rows(self, X: Any) -> Float[np.ndarray, "N D"]:
        """Checked rows at unit length."""
        checked: Any = validate_data(self, X, dtype=np.float32, reset=False)
        return _unit(checked)

    def _texts(self, x: np.ndarray, labels: np.ndarray) -> Float[np.ndarray, "C D"]:
        if self.texts is None:
            rows = _unit(x)
            return _unit(np.stack([rows[labels == c].mean(axis=0) for c in range(len(self.classes_))]))
        texts = np.asarray(self.texts, np.float32)
        if texts.shape != (len(self.classes_), x.shape[1]) or not np.isfinite(texts).all():
            raise ValueError(
                f"texts has shape {texts.shape}; expected finite numbers of shape ({len(self.classes_)}, "
                f"{x.shape[1]}): one row per class of y, in sorted order"
            )
        return _unit(texts)


def _unit(x: np.ndarray) -> np.ndarray:
    """Unit rows; a row of zeros, which has no direction, points along the diagonal."""
    norms = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    flat = np.full(x.shape, x.shape[1] ** -0.5)
    return np.where(norms > TINY, x / np.maximum(norms, TINY), flat).astype(np.float32)


def _task(x: np.ndarray, labels: np.ndarray, texts: np.ndarray, scale: float) -> Task:
    classes, width = texts.shape
    rows, digest = len(x), hashlib.sha256(x.tobytes() + labels.astype("<i4").tobytes()).hexdigest()
    spec = EncoderSpec("arrays", "", "", "image", width, {}, "float32", logit_scale=scale)
    written = Texts(torch.from_numpy(texts)[:, None], torch.ones(classes, 1))
    return Task(
        dataset="arrays",
        class_names=tuple(f"class {i}" for i in range(classes)),
        modality="image",
        x=torch.from_numpy(x)[:, None],
        labels=torch.from_numpy(labels.astype(np.int64)),
        text=written.x,
        templates="classname",
        logit_scale=scale,
        draw=Draw(None, None, rows, 0, digest),
        encoders={"image": spec, "text": spec},
        tables={"image/train": digest},
        texts={"classname": written},
        queries={"text": "classname"},
    )
