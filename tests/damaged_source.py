"""A source with damaged images, in a module that worker processes import fast."""


class Damaged:
    """The first `length` records of a source; every `every`-th image is truncated."""

    def __init__(self, source, every, length=40):
        self._source, self._every, self._length = source, every, length
        self.name, self.class_names = source.name, source.class_names

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        record = self._source[index]
        return record if index % self._every else record | {"image": record["image"][:40]}
