"""Embeddings of all images of a folder, with their names.

    python -m facejax.evaluate.embed FOLDER --weights backbone.pth --out DIR

The images should be aligned crops (`facejax.data.transforms.align`); they are resized to the side that the network
takes. DIR gets embeddings.npy [N, D], names.txt with one path a row, relative to FOLDER, and skipped.txt with the
images that do not decode. A run that was stopped goes on where it was if it is started again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from facejax.data import sources, transforms
from facejax.data.decoding import BadImage, ImageFile
from facejax.data.readers.folder import SUFFIXES, natural
from facejax.evaluate.embedder import PUBLISHED, Embedder, embedding_function
from facejax.formats import arrays, texts

Embed = Callable[[np.ndarray], np.ndarray]
PART = 4096
"""Images between two writes."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """All images under a folder, in natural order.

    Attributes:
      root: the folder.
      names: paths relative to it, with "/" between folders.
    """

    root: pathlib.Path
    names: list[str]

    @classmethod
    def find(cls, root: str | os.PathLike[str]) -> Folder:
        """Files and folders whose name begins with a dot are left out. Raises ValueError where there is no image."""
        root, names = pathlib.Path(root).expanduser(), []
        for folder, inner, files in os.walk(root):
            inner[:] = sorted((name for name in inner if name[0] != "."), key=natural)
            place = pathlib.PurePath(folder).relative_to(root)
            names += [(place / name).as_posix() for name in files if name[0] != "." and "\n" not in name]
        names = [name for name in names if pathlib.PurePath(name).suffix.lower() in SUFFIXES]
        if not names:
            raise ValueError(f"{root}: no images, expected a folder of them")
        return cls(root, sorted(names, key=lambda name: [natural(part) for part in name.split("/")]))

    def digest(self) -> str:
        """Of the names and the sizes of the files."""
        content = hashlib.sha256()
        for name in self.names:
            content.update(f"{name}\n{(self.root / name).stat().st_size}\n".encode())
        return content.hexdigest()

    def read(self, names: Sequence[str], size: int) -> Iterator[tuple[np.ndarray | None, str]]:
        """Each image resized to uint8 [size, size, 3], or None, and what is wrong with it."""
        for name in names:
            try:
                image = transforms.decode(ImageFile(ImageFile.read(self.root / name), name))
                yield transforms.resize(image, size, size), ""
            except (BadImage, OSError) as error:
                yield None, " ".join(str(error).split())


def embed_folder(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    embed: Embed,
    image_size: int,
    made_by: dict[str, str],
    quiet: bool = False,
) -> tuple[int, int]:
    """Writes the embeddings of a folder's images; see the module.

    Args:
      folder: of the images.
      out: folder for the results; an unfinished run found there goes on.
      embed: uint8 [n, S, S, 3] -> [n, D].
      image_size: S.
      made_by: what else the embeddings depend on, such as the digest of the weights; an unfinished run must agree.
      quiet: shows no progress.

    Returns:
      How many images have an embedding, and how many were skipped.

    Raises:
      ValueError: no images, or `out` holds other files, a finished run or one of other images or weights.
    """
    found, out = Folder.find(folder), pathlib.Path(out).expanduser()
    parts = out / "parts"
    _open(out, {"images": found.digest(), **made_by})
    sources.warn_unaligned((found.root / name for name in found.names), image_size, str(found.root))
    starts = range(0, len(found.names), PART)
    for start in tqdm(starts, unit_scale=PART, unit="images", disable=quiet or not sys.stderr.isatty()):
        if (parts / f"{start}.json").exists():
            continue
        names = found.names[start : start + PART]
        images, rows, skipped = [], [], {}
        for name, (image, flaw) in zip(names, found.read(names, image_size), strict=True):
            if image is None:
                skipped[name] = flaw
            else:
                images.append(image)
                rows.append(name)
        features = embed(np.stack(images)) if images else np.zeros((0, 0), np.float32)
        np.save(parts / f"{start}.npy", np.asarray(features, np.float32))
        _write(parts / f"{start}.json", json.dumps({"names": rows, "skipped": skipped}))
    return _join(out, parts, starts)


def _open(out: pathlib.Path, run: dict[str, str]) -> None:
    """Makes the folder, or checks that an unfinished run in it is this one."""
    file = out / "run.json"
    if (out / "embeddings.npy").exists():
        raise ValueError(f"{out} holds embeddings.npy: choose another folder")
    if file.exists():
        other = texts.read_json(file, dict)
        if different := [key for key in run if other.get(key) != run[key]]:
            raise ValueError(f"{out} is a run of other {', '.join(different)}: choose another folder")
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} holds files but no run.json: choose another folder")
    (out / "parts").mkdir(parents=True, exist_ok=True)
    _write(file, json.dumps(run, indent=2) + "\n")


def _join(out: pathlib.Path, parts: pathlib.Path, starts: Sequence[int]) -> tuple[int, int]:
    names, skipped = [], {}
    for start in starts:
        part = texts.read_json(parts / f"{start}.json", dict)
        names += part["names"]
        skipped |= part["skipped"]
    features = [x for x in (arrays.load(parts / f"{start}.npy") for start in starts) if len(x)]
    if not features:
        raise ValueError(f"none of the {len(skipped)} images decodes, the first: {next(iter(skipped.values()))}")
    _write(out / "names.txt", "".join(f"{name}\n" for name in names))
    if skipped:
        _write(out / "skipped.txt", "".join(f"{flaw}\n" for flaw in skipped.values()))
    np.save(parts / "embeddings.npy", np.concatenate(features))
    (parts / "embeddings.npy").replace(out / "embeddings.npy")
    for file in parts.iterdir():
        file.unlink()
    parts.rmdir()
    return len(names), len(skipped)


def _write(file: pathlib.Path, text: str) -> None:
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    temporary.replace(file)


def main(arguments: Sequence[str] | None = None) -> None:
    """Embeds a folder with published weights."""
    parser = argparse.ArgumentParser(prog="python -m facejax.evaluate.embed", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("folder", help="folder of images, in any depth")
    parser.add_argument("--weights", required=True, help="a state dict of arcface_torch (.pt, .pth)")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--model", default="iresnet50", choices=PUBLISHED, help="default: iresnet50")
    parser.add_argument("--embedding_size", type=int, default=512, help="numbers of an embedding; default: 512")
    parser.add_argument("--image_size", type=int, default=112, help="side of the network's input; default: 112 pixels")
    parser.add_argument("--batch_size", type=int, default=128, help="default: 128")
    parser.add_argument("--flip", action="store_true", help="add the mirror image's, to unit length (arcface_torch)")
    given = parser.parse_args(arguments)
    try:
        if min(given.batch_size, given.image_size, given.embedding_size) < 1:
            raise ValueError("--batch_size, --image_size and --embedding_size: expected 1 or more")
        network = Embedder.load(
            given.model, given.weights, embedding_size=given.embedding_size, image_size=given.image_size
        )
        run = {
            "weights": _digest(given.weights.partition(":")[0] if not os.path.exists(given.weights) else given.weights),
            "model": f"{given.model}, {given.embedding_size} numbers, {given.image_size} pixels"
            + ", with mirror images" * given.flip,
        }
        embed = embedding_function(network.net, network.variables, given.batch_size, flip=given.flip)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            done, skipped = embed_folder(given.folder, given.out, embed, given.image_size, run)
    except (ValueError, OSError) as error:
        sys.exit(f"facejax.evaluate.embed: {error}")
    print(f"{done} embeddings: {given.out}/embeddings.npy" + f"; {skipped} skipped: skipped.txt" * bool(skipped))


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
