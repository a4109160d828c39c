"""``ImageClassifier``: the whole of dha behind scikit-learn's estimator contract."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError

from dha.config import Config
from dha.data import image_chunks
from dha.model import TrainedModel, labelled_images


class ImageClassifier(ClassifierMixin, BaseEstimator, Config):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Learns to classify images: architecture, augmentation policy and hyper-parameters together with the weights, in
    one run.

    The parameters are those of ``dha.Config``; none has to be set. ``ImageClassifier(budget="10m").fit("photos/")``.

    Attributes:
        model_: the delivered ``TrainedModel``.
        classes_: the class labels, in the order of the columns of ``predict_proba``.
        genotype_: the architecture that was found.
        history_: one dictionary of metrics per epoch.
        test_accuracy_: accuracy on the test images of the source, in [0, 1]; None when images are given, not named.
        skipped_: number of files left out because they are not images.
        data_report_: what was read: ``data_report_.lines()`` says it in words.
        config_: the settings with everything that was left open decided.
    """

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        out: str | Path | None = None,
        progress: bool = True,
        resume: bool = False,
    ) -> "ImageClassifier":
        """Train on labelled images.

        Args:
            X: a folder of class folders, a table of paths and labels (a file or a pandas DataFrame), a ``.npz`` file, a
                folder with ``train*.npz``, "digits", a name on the Hugging Face Hub, a ``datasets.Dataset``; or, with
                ``y``, an array or tensor (N, H, W), (N, H, W, C) or (N, C, H, W) of integers or floats, or a list of
                arrays, tensors, PIL images and paths, of any sizes. Of what is named by a string or a path and has no
                test images, the share ``test_fraction`` is held out for the test; of other images none are.
            y: one label per image, integers, strings or booleans, where X holds none itself.
            sample_weight: (N,), how much each image counts in the losses, finite and at least 0, where X is given with
                y; all alike when not given. It is multiplied by ``class_weight``.
            out: folder to write the run to; nothing is written when not given.
            progress: show what was read and a progress bar on standard error.
            resume: go on with the run in ``out``, by its settings; begin it where there is none.

        Returns:
            This estimator.

        Raises:
            DhaError: for a bad setting, source or output folder, before any training.
        """
        from dha.display import Display  # Here, because a model predicts without what a run loads.
        from dha.fit import run

        # What is named is split as on the command line, so that both give the same model. Who hands over images keeps
        # the test apart, as everywhere in scikit-learn.
        named = isinstance(X, str | Path)
        with Display(shown=progress) as display:
            result = run(
                X,
                y,
                config=self,
                sample_weight=sample_weight,
                out=out,
                hold_out_test=named,
                watch=display.update,
                resume=resume,
                tell=display.tell,
            )
        self._adopt(result.model)
        self.history_, self.test_accuracy_, self.config_ = result.history, result.test_accuracy, result.config
        self.skipped_, self.data_report_ = result.skipped, result.report
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Return the probability of each class, float32 (N, classes).

        Args:
            X: images as in ``fit``, without labels; or one image: an array (H, W) or (H, W, C), a tensor (C, H, W), a
                PIL image or a path. Files are read a few at a time.

        Raises:
            DhaError: for an image that cannot be read, or has another type, shape or range than images have.
        """
        model = self._fitted()
        chunks = image_chunks(X, model.preprocessing.image_format)
        return np.concatenate([model.probabilities(images).numpy() for images in chunks])

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each image."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy on labelled images, in [0, 1]; of a source with a test part, on that part."""
        model = self._fitted()
        images = labelled_images(model, X, y)
        hits = (model.probabilities(images).argmax(1) == images.labels).numpy()
        return float(np.average(hits, weights=sample_weight))

    def save(self, folder: str | Path) -> None:
        """Write the model to a folder that ``load`` and ``dha predict`` read.

        Args:
            folder: new, empty, or of a model that dha has written, in whose place this one comes.

        Raises:
            DhaError: if the folder holds anything else, or is a file or a link.
        """
        self._fitted().save(folder)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", network: Any = None) -> "ImageClassifier":
        """Return a fitted classifier from a model folder; nothing is unpickled.

        Args:
            folder: of the model.
            device: where the network will be, as torch names it; "auto" for the best of this machine.
            network: the network that was brought to ``fit``, once more: the folder holds its weights only.

        Raises:
            DhaError: if the folder is not a dha model, or ``network`` does not fit it.
        """
        classifier = cls()
        classifier._adopt(TrainedModel.load(folder, device, network))
        return classifier

    def _adopt(self, model: TrainedModel) -> None:
        self.model_ = model
        self.classes_ = np.array(model.classes)
        self.genotype_ = model.genotype

    def _fitted(self) -> TrainedModel:
        if not hasattr(self, "model_"):
            raise NotFittedError(
                "this ImageClassifier is not fitted yet: call fit, or ImageClassifier.load a saved model"
            )
        return self.model_

    def __sklearn_tags__(self) -> Any:
        """Say that the input is images, not a table."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags
