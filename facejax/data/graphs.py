"""The `data` section of experiments that classify the nodes of one graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from facejax.data.readers.graph_folder import read_graph
from facejax.data.readers.planetoid import Citations, read_planetoid
from facejax.data.synthetic import graphs


@dataclasses.dataclass(frozen=True)
class NodeSource:
    """The graph that an experiment reads or generates.

    Attributes:
      source: "blocks" (a stochastic block model), "karate" (Zachary's karate club), or "cora", "citeseer", "pubmed"
        (Planetoid's files), or "files" (a folder with labels.txt, edges.txt, features.npy and split.txt, see
        `facejax.data.readers.graph_folder`).
      path: folder of Planetoid's files ind.NAME.*, or of your own.
      nodes: nodes of the block model.
      classes: classes of the block model.
      degree_in: expected number of neighbours of a node's own class in the block model.
      degree_out: expected number of neighbours of all other classes in the block model.
      labelled: training nodes per class in the block model, and in files without split.txt.
    """

    source: str = "blocks"
    path: str = ""
    nodes: int = 600
    classes: int = 4
    degree_in: float = 6.0
    degree_out: float = 3.0
    labelled: int = 5

    def load(self, seed: int, path: str = "", names: Sequence[str] = ()) -> Citations:
        """The graph with features, labels and split.

        Args:
          seed: of the block model, and of the split of files without split.txt.
          path: folder that replaces the section's `path`; empty: the section's.
          names: of the classes of files, as of the graph that a network was trained on; empty: those of the files.

        Raises:
          ValueError: an unknown source, or files that cannot be read.
        """
        if self.source == "blocks":
            return graphs.blocks(
                self.nodes, self.classes, self.degree_in, self.degree_out, seed, labelled=self.labelled
            )
        if self.source == "karate":
            return graphs.karate_club()
        if self.source == "files":
            return read_graph(path or self.path, seed, self.labelled, names)
        if self.source not in ("cora", "citeseer", "pubmed"):
            raise ValueError(
                f"data.source is {self.source!r}: expected blocks, karate, files, cora, citeseer or pubmed"
            )
        return read_planetoid(path or self.path, self.source)
