"""Faces with head pose: 300W-LP, AFLW2000-3D (files or the tfds catalogue) and BIWI.

Angles become pitch, yaw, roll in radians in the convention of `facejax.ops.rotation.from_euler`, points pixels from 0.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from facejax.data.decoding import ImageFile
from facejax.data.readers import matlab
from facejax.data.readers.landmarks import Face, FaceImages, Path, beside, floats, read_lines
from facejax.formats import matfile

SHAPES = {"Pose_Para": 7, "Shape_Para": 199, "Exp_Para": 29, "Tex_Para": 199, "Illum_Para": 10, "Color_Para": 7}
"""Parameters of the morphable model in the files of 300W-LP and AFLW2000-3D, with their lengths."""

POSE_BYTES = 1 << 12
SIDE = 450
"""Side of the images of 300W-LP and AFLW2000-3D, pixels."""


def read_parameters(file: Path) -> dict[str, np.ndarray]:
    """A face's `.mat` file of 300W-LP or AFLW2000-3D, in the file's own units: float64, coordinates from 1.

    Returns:
      "pt2d" [2, L] with L = 68 (300W-LP) or 21 (AFLW2000-3D), "Pose_Para" [7] (pitch, yaw, roll in radians, x, y, z,
      scale), and of "pt3d_68" [3, 68] and the others of `SHAPES` those that the file has, as vectors.

    Raises:
      ValueError: the file is no MATLAB file, or a variable is missing or has another shape.
    """
    found = matfile.variables(file, ("pt2d", "Pose_Para"), ("pt3d_68", *SHAPES))
    result = {
        name: matlab.numbers(file, name, np.asarray(found[name]).ravel(), (length,))
        for name, length in SHAPES.items()
        if name in found
    }
    result["pt2d"] = matlab.numbers(file, "pt2d", found["pt2d"], (2, None))
    if result["pt2d"].shape[1] not in (21, 68):
        raise ValueError(f"{file}: pt2d has {result['pt2d'].shape[1]} points: expected 68 or 21")
    if "pt3d_68" in found:
        result["pt3d_68"] = matlab.numbers(file, "pt3d_68", found["pt3d_68"], (3, 68))
    return result


def counted(points: np.ndarray) -> np.ndarray:
    """[L] bool: points [2, L], from 1, that the crops of Hopenet and FSA-Net count.

    These have a positive x or a positive y, whichever leaves fewer: missing points are -1, and points left of or above
    the image drop out.
    """
    right, below = points[0] > 0, points[1] > 0
    return below if right.sum() > below.sum() else right


def read_folder(root: Path) -> FaceImages:
    """All faces `NAME.mat` beside `NAME.jpg` in a folder of 300W-LP or AFLW2000-3D, in the order of their names.

    The box surrounds the points of pt2d that `counted` selects. The points are the 68 of pt3d_68 if the file has them,
    else of pt2d.

    Raises:
      ValueError: no such file, a damaged one, or one without its image.
    """
    files = sorted(file for file in pathlib.Path(root).glob("*.mat") if file.name[0] != ".")
    if not files:
        raise ValueError(f"{root}: no .mat files, expected one beside each image")
    return FaceImages([_face(file) for file in files])


def _face(file: pathlib.Path) -> Face:
    found = read_parameters(file)
    flat = found["pt2d"][:, counted(found["pt2d"])]
    if flat.shape[1] < 2:
        raise ValueError(f"{file}: pt2d has {flat.shape[1]} points in the image: expected two or more")
    points = found["pt3d_68"][:2] if "pt3d_68" in found else found["pt2d"]
    if points.shape[1] != 68:
        raise ValueError(f"{file}: no pt3d_68 and {points.shape[1]} points in pt2d: expected 68 points in one of them")
    return Face(
        beside(file),
        file.stem,
        points=(points.T - 1).astype(np.float32),
        box=(np.concatenate([flat.min(1), flat.max(1)]) - 1).astype(np.float32),
        pose=(-found["Pose_Para"][:3]).astype(np.float32),
    )


class Catalogue:
    """The set "the300w_lp" or "aflw2k3d" of the tfds catalogue, prepared as ArrayRecord.

    aflw2k3d has no angles: read AFLW2000-3D's own folder for them.

    Args:
      name: name of the set.
      data_dir: tfds's folder; None: its default.

    Raises:
      ValueError: another set, or the set is not prepared as ArrayRecord.
    """

    def __init__(self, name: str, data_dir: str | None = None):
        import tensorflow_datasets as tfds  # slow

        if name not in ("the300w_lp", "aflw2k3d"):
            raise ValueError(f"tfds set {name!r}: expected the300w_lp or aflw2k3d")
        try:
            builder, self._name = tfds.builder(name, data_dir=data_dir, file_format="array_record"), name
            self._source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
        except Exception as error:  # tfds raises various exceptions
            raise ValueError(
                f"tfds set {name!r}, not prepared as ArrayRecord in {data_dir or 'its default'}: {error}"
            ) from error

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[index]
        return from_catalogue({**example, "image": ImageFile(example["image"], f"{self._name}, {index}")})


def from_catalogue(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example of the300w_lp or aflw2k3d in the form of `FaceImages`."""
    poses = "pose_params" in example
    relative = np.asarray(example["landmarks_origin" if poses else "landmarks_68_3d_xy_normalized"], np.float64)
    points = (relative * SIDE - 1).astype(np.float32)
    found = {"image": example["image"], "points": points, "box": np.concatenate([points.min(0), points.max(0)])}
    return {**found, "pose": -np.asarray(example["pose_params"], np.float32)[:3]} if poses else found


def read_biwi_pose(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """BIWI's frame_NNNNN_pose.txt: the rotation [3, 3] of the head, and its centre [3] in mm, in the camera's axes.

    Raises:
      ValueError: other than four lines of three numbers, or the first three are no rotation to within 0.01.
    """
    rows = [(number, line.split()) for number, line in enumerate(read_lines(file, POSE_BYTES), 1) if line.strip()]
    if len(rows) != 4:
        raise ValueError(f"{file}: {len(rows)} lines with numbers: expected three of a rotation and one of a position")
    values = np.array([floats(fields, 3, f"{file}, line {number}") for number, fields in rows])
    rotation = values[:3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 0.01 or np.linalg.det(rotation) < 0:
        raise ValueError(f"{file}: the first three lines are no rotation: expected orthonormal rows, determinant 1")
    return rotation, values[3]


def biwi_angles(rotations: np.ndarray) -> np.ndarray:
    """Pitch, yaw, roll [N, 3] in radians of `facejax.ops.rotation.from_euler`, of BIWI's rotations [N, 3, 3].

    The camera's axes are x right, y down, z away; those of facejax x right, y up, z to the viewer.
    """
    axes = np.array([1, -1, -1])
    return Rotation.from_matrix(rotations * axes[:, None] * axes).as_euler("XYZ")


def read_biwi(root: Path) -> FaceImages:
    """BIWI's frames NN/frame_NNNNN_rgb.png with frame_NNNNN_pose.txt, by folder and number; `person` is the folder.

    The files hold no boxes. 24 folders show 20 people: two or more folders may show one person.

    Raises:
      ValueError: no frame, a damaged file, or a frame without its image.
    """
    root, faces = pathlib.Path(root), []
    for file in sorted(root.glob("[0-9][0-9]/frame_*_pose.txt")):
        picture = file.with_name(file.name.replace("_pose.txt", "_rgb.png"))
        if not picture.is_file():
            raise ValueError(f"{file}: no {picture.name} beside it")
        angles = biwi_angles(read_biwi_pose(file)[0]).astype(np.float32)
        name = f"{file.parent.name}/{file.name.removesuffix('_pose.txt')}"
        faces.append(Face(picture, name, pose=angles, person=file.parent.name))
    if not faces:
        raise ValueError(f"{root}: no NN/frame_NNNNN_pose.txt, expected BIWI's folders 01 to 24")
    return FaceImages(faces)
