"""All 66 systems, where each lives, and its state as the files tell it.

python -m experiments            # a table for the terminal
python -m experiments --markdown # the table of README.md
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import json
import pathlib
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class System:
    """A paper: its name, its module below facejax, its experiment (with a colon where one file runs several)."""

    name: str
    code: str
    experiment: str

    @property
    def wing(self) -> str:
        return self.code.split("/")[0]

    @property
    def module(self) -> pathlib.Path:
        return ROOT / "facejax" / f"{self.code}.py"

    @property
    def program(self) -> pathlib.Path:
        return ROOT / "experiments" / f"{self.experiment.split(':')[0]}.py"

    @functools.cached_property
    def source(self) -> ast.Module:
        """The experiment's parsed source, empty where there is none."""
        return ast.parse(self.program.read_text() if self.program.exists() else "")

    def presets(self) -> list[str]:
        """Names of the experiment's presets, read from its source."""
        for node in self.source.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PRESETS":
                return [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
        return []

    def claims(self) -> list[dict[str, Any]]:
        """The last row of each claim that the experiment's source names, with its sentence as it stands there."""
        rows = recorded(self.program.stem)
        calls = (
            node for node in ast.walk(self.source) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Claim"
        )
        named = [[argument.value for argument in call.args[:2]] for call in calls]
        found = [{**rows[key], "claim": text} for key, text in named if key in rows]
        return [row for row in found if row["experiment"] == self.experiment]

    def state(self) -> str:
        """State in words: "planned", "built", or what the last measurements of its claims said."""
        package = self.module.with_suffix("") / "__init__.py"
        if not self.program.exists() or not (self.module.exists() or package.exists()):
            return "planned"
        verdicts = [row["verdict"] for row in self.claims()]
        if len(verdicts) < 2:
            return f"claim {verdicts[0]}" if verdicts else "built"
        undecided = verdicts.count("undecided")
        return f"{verdicts.count('shows')} of {len(verdicts)} claims show" + f", {undecided} undecided" * (
            undecided > 0
        )


def record(name: str) -> pathlib.Path:
    """The file of measured claims of an experiment's module: JSON lines, oldest first."""
    return ROOT / "results" / "claims" / f"{name}.jsonl"


def recorded(name: str) -> dict[str, dict[str, Any]]:
    """The last row of every claim in that file, by id; none where there is no file."""
    rows = map(json.loads, record(name).read_text().splitlines()) if record(name).exists() else ()
    return {row["id"]: row for row in rows}


SYSTEMS = (
    System("ArcFace", "recognition/arcface", "arcface"),
    System("GroupFace", "recognition/groupface", "groupface"),
    System("MagFace", "recognition/magface", "magface"),
    System("VirFace", "recognition/virface", "virface"),
    System("Variational Prototype Learning", "recognition/vpl", "vpl"),
    System("tinyFQnet", "quality/tinyfqnet", "tinyfqnet"),
    System("EQFace", "quality/eqface", "eqface"),
    System("Human quality assessment", "quality/human_quality", "human_quality"),
    System("FaceQnet v0", "quality/faceqnet", "faceqnet:v0"),
    System("FaceQnet v1", "quality/faceqnet", "faceqnet:v1"),
    System("PCNet", "quality/pcnet", "pcnet"),
    System("RankIQA", "quality/rankiqa", "rankiqa"),
    System("QAN", "quality/qan", "qan"),
    System("QAN++", "quality/qan_pp", "qan_pp"),
    System("SDD-FIQA", "quality/sdd_fiqa", "sdd_fiqa"),
    System("SER-FIQ", "quality/ser_fiq", "ser_fiq"),
    System("Focal loss / RetinaNet", "detection/retinanet", "retinanet"),
    System("SSD", "detection/ssd", "ssd"),
    System("YOLO v1", "detection/yolov1", "yolov1"),
    System("CornerNet", "detection/cornernet", "cornernet"),
    System("CenterNet", "detection/centernet", "centernet"),
    System("SSH", "detection/ssh", "ssh"),
    System("DSFD", "detection/dsfd", "dsfd"),
    System("RetinaFace", "detection/retinaface", "retinaface"),
    System("SCRFD", "detection/scrfd", "scrfd"),
    System("YOLO5Face", "detection/yolo5face", "yolo5face"),
    System("WingLoss", "alignment/wing", "wing"),
    System("AdaptiveWingLoss", "alignment/adaptive_wing", "adaptive_wing"),
    System("DAN", "alignment/dan", "dan"),
    System("MCL", "alignment/mcl", "mcl"),
    System("LAB", "alignment/lab", "lab"),
    System("FAB", "alignment/fab", "fab"),
    System("PFLD", "alignment/pfld", "pfld"),
    System("SSR-Net", "attributes/ssrnet", "ssrnet"),
    System("FSA-Net", "attributes/fsanet", "fsanet"),
    System("3DDFA v1", "reconstruction/tddfa", "tddfa"),
    System("3DDFA v2", "reconstruction/tddfa_v2", "tddfa_v2"),
    System("2DASL", "reconstruction/asl2d", "asl2d"),
    System("PRNet", "reconstruction/prnet", "prnet"),
    System("CDP", "clustering/cdp", "cdp"),
    System("DA-Net", "clustering/density_aware", "density_aware"),
    System("VE-GCN (GCN-V + GCN-E)", "clustering/vegcn", "vegcn"),
    System("OGMC", "clustering/ogmc", "ogmc"),
    System("ODC", "clustering/odc", "odc"),
    System("STAR-FC", "clustering/star_fc", "star_fc"),
    System("GCN", "graph/gcn", "gcn"),
    System("GraphSAGE", "graph/graphsage", "graphsage"),
    System("GAT", "graph/gat", "gat"),
    System("PG-GAN", "generation/pggan", "pggan"),
    System("StyleGAN", "generation/stylegan", "stylegan"),
    System("DiscoFaceGAN", "generation/discofacegan", "discofacegan"),
    System("DyStyle", "generation/dystyle", "dystyle"),
    System("ByeGlassesGAN", "generation/byeglassesgan", "byeglassesgan"),
    System("Synthesizing Normalized Faces", "generation/normalized_face", "normalized_face"),
    System("Super-resolution", "restoration/super_resolution", "super_resolution"),
    System("Online video deblurring", "restoration/video_deblur", "video_deblur"),
    System("UID-GAN", "restoration/uid_deblur", "uid_deblur"),
    System("Transformer", "foundations/transformer", "transformer"),
    System("Deep VIB", "foundations/vib", "vib"),
    System("Bilinear CNNs", "foundations/bilinear_cnn", "bilinear_cnn"),
    System("Visualizing and Understanding CNNs", "foundations/deconvnet", "deconvnet"),
    System("Deformable Convolutional Networks", "foundations/deformable", "deformable"),
    System("HRNet", "backbones/hrnet", "hrnet"),
    System("Inception", "backbones/inception", "inception"),
    System("MobileNet V1", "backbones/mobilenet", "mobilenet:v1"),
    System("MobileNet V2", "backbones/mobilenet", "mobilenet:v2"),
)


def markdown() -> str:
    """The table of README.md."""
    lines = ["| system | wing | experiment | presets | state |", "|---|---|---|---|---|"]
    for s in SYSTEMS:
        name = s.experiment if s.state() == "planned" else f"`{s.experiment}`"
        lines.append(f"| {s.name} | {s.wing} | {name} | {len(s.presets()) or ''} | {s.state()} |")
    return "\n".join(lines)


def main() -> None:
    """Prints all systems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true")
    if parser.parse_args().markdown:
        print(markdown())
        return
    for s in SYSTEMS:
        print(f"{s.experiment:18} {s.wing:15} {s.state():33} {s.name:32} {', '.join(s.presets())}")
    built = sum(s.state() != "planned" for s in SYSTEMS)
    print(f"{built} of {len(SYSTEMS)} built. Run one with: python -m experiments.NAME --config=PRESET")


if __name__ == "__main__":
    main()
