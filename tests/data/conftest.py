"""What the tests of data share."""

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photograph():
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg"))
