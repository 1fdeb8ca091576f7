"""Documents from data sets of the hub (or from local directories in its layout), streamed and mixed by weight."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lep.corpus.documents import Document, record_document


@dataclass(frozen=True)
class HubDataset:
    """One data set: `path` is a repository id or a local directory, `name` its configuration, `weight` its share.

    Without a `revision` (a commit) the hub may change it unseen, and what was built from it is used all the same.
    """

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    weight: float = 1.0
    text_field: str = "text"
    language: str | None = None
    language_field: str | None = None

    def records(self) -> Iterator[dict]:
        """The records, streamed."""
        from datasets import load_dataset  # slow to import, and of no use to other sources

        path = str(Path(self.path).expanduser()) if self.path.startswith("~") else self.path
        yield from load_dataset(path, self.name, split=self.split, revision=self.revision, streaming=True)

    def fingerprint(self) -> dict:
        local = Path(self.path).expanduser()
        files = [path for path in sorted(local.rglob("*")) if path.is_file()] if local.is_dir() else []
        stats = [[str(path.relative_to(local)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        return {**asdict(self), "files": stats}


@dataclass(frozen=True)
class Hub:
    """Named data sets drawn at random in proportion to their weights, document by document.

    Ends at `max_documents`, or when the first data set runs out, for the proportion could not be kept beyond that. The
    order depends on `seed` alone.
    """

    mixture: Mapping[str, HubDataset] = field(default_factory=dict)
    max_documents: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.mixture:
            raise ValueError("corpus.mixture is empty; name at least one data set, as in mixture={wiki: {path: ...}}")
        for name, dataset in self.mixture.items():
            if not dataset.weight > 0:
                raise ValueError(f"corpus.mixture.{name}.weight={dataset.weight} must be above 0; or leave {name} out.")

    def documents(self) -> Iterator[Document]:
        names = list(self.mixture)
        weights = [self.mixture[name].weight for name in names]
        streams = {name: self.mixture[name].records() for name in names}
        drawn, rng = Counter(), random.Random(self.seed)
        while self.max_documents is None or drawn.total() < self.max_documents:
            (name,) = rng.choices(names, weights)
            record = next(streams[name], None)
            if record is None:
                return
            drawn[name] += 1
            dataset = self.mixture[name]
            yield record_document(
                record,
                text_field=dataset.text_field,
                language=dataset.language,
                language_field=dataset.language_field,
                source=name,
                place=f"corpus.mixture.{name} ({dataset.path}), record {drawn[name]}",
            )

    def fingerprint(self) -> dict:
        mixture = {name: dataset.fingerprint() for name, dataset in self.mixture.items()}
        return {"source": "hub", "mixture": mixture, "max_documents": self.max_documents, "seed": self.seed}
