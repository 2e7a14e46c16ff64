"""The scikit-learn estimator: scikit-learn's own checks, and what it is there for."""

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from spaner.sklearn import Aligner

#: Checks whose data has no direction to learn from, since rows are compared by angle alone.
BY_ANGLE = {
    "check_fit2d_1feature": "one feature leaves two directions",
}


@pytest.mark.parametrize(
    ("estimator", "check"),
    list(estimator_checks_generator(Aligner(epochs=2))),
    ids=lambda value: getattr(getattr(value, "func", value), "__name__", "aligner"),
)
def test_scikit_learns_own_checks(estimator: Aligner, check: object) -> None:
    name = getattr(check, "func").__name__  # noqa: B009
    if name in BY_ANGLE:
        pytest.xfail(BY_ANGLE[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)  # type: ignore[operator]


def test_it_learns_in_a_pipeline_and_a_grid_search() -> None:
    x, y = load_digits(return_X_y=True)
    names = np.array([f"digit {i}" for i in range(10)])[y]
    model = make_pipeline(StandardScaler(), Aligner(epochs=3))
    search = GridSearchCV(model, {"aligner__prompt_length": [1, 2]}, cv=2).fit(x[:300], names[:300])
    assert np.mean(search.predict(x[300:600]) == names[300:600]) > 0.7
    z = search.best_estimator_.transform(x[:7])
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    p = search.predict_proba(x[:7])
    assert (search.classes_[p.argmax(axis=1)] == search.predict(x[:7])).all()
    assert len(search.best_estimator_.get_feature_names_out()) == z.shape[1]


def test_texts_describe_the_classes() -> None:
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(3, 16))
    y = np.repeat([10, 20, 30], 20)
    x = texts[np.repeat(np.arange(3), 20)] + 0.5 * rng.normal(size=(60, 16))
    model = Aligner(texts, epochs=2).fit(x, y)
    np.testing.assert_allclose(model.texts_, texts / np.linalg.norm(texts, axis=1, keepdims=True), atol=1e-6)
    assert model.score(x, y) > 0.9
    with pytest.raises(
        ValueError, match=r"texts has shape \(2, 16\); expected finite numbers of shape \(3, 16\)"
    ):
        Aligner(texts[:2]).fit(x, y)
