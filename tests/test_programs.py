"""Traced programs that are kept between runs."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import facejax
from facejax import programs
from facejax.ops import boxes


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """JAX's folder of compiled programs, for one test."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "compiled"))
    yield tmp_path / "compiled" / "traced"
    jax.config.update("jax_compilation_cache_dir", before)


class Traced:
    """A function of nested variables and an array, which counts how often it is traced."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, variables: Any, x: jax.Array) -> dict[str, Any]:
        self.count += 1
        hidden = jnp.tanh(x @ variables["params"]["kernel"])
        return {"scores": hidden.sum(-1), "pair": (hidden, boxes.clip(x, (3, 5)))}


class OwnNet(nn.Module):
    """A network that is no part of the library."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.Dense(2)(images)


VARIABLES = {"params": {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)}}


def call(function: Traced, rows: int, key: str = "net") -> Any:
    """What a new run of a program gives."""
    x = np.linspace(-2, 7, 4 * rows, dtype=np.float32).reshape(rows, 4)
    kept = programs.kept(function, key)
    return jax.jit(lambda x: kept(VARIABLES, x))(x)


def test_a_later_run_traces_nothing_and_gives_the_same(folder: pathlib.Path) -> None:
    first, later, plain = Traced(), Traced(), Traced()
    expected = call(plain, 2, key="")
    chex.assert_trees_all_close(call(first, 2), expected, rtol=1e-6)
    chex.assert_trees_all_close(call(later, 2), expected, rtol=1e-6)
    assert (first.count, later.count, plain.count) == (1, 0, 1)
    assert len(list(folder.iterdir())) == 1


def test_other_shapes_keys_and_sources_are_traced_anew(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function = Traced()
    call(function, 2)
    assert call(function, 3)["scores"].shape == (3,)
    assert function.count == 2
    call(function, 2, key="another")
    assert function.count == 3
    monkeypatch.setattr(programs, "_source", lambda: "changed")
    call(function, 2)
    assert function.count == 4


@pytest.mark.parametrize("damage", [lambda content: content[:40], lambda content: content[:-1] + b"?", lambda _: b""])
def test_a_damaged_file_is_written_again(folder: pathlib.Path, damage: Any) -> None:
    function = Traced()
    expected = call(function, 2)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    chex.assert_trees_all_close(call(function, 2), expected)
    assert function.count == 2
    call(function, 2)
    assert function.count == 2


def test_nothing_is_kept_without_a_key_or_a_folder_of_this_machine(
    tmp_path: pathlib.Path, folder: pathlib.Path
) -> None:
    call(Traced(), 2, key="")
    assert not folder.exists()
    blocked = tmp_path / "file"
    blocked.write_text("")
    for other in (None, "gs://bucket/compiled", str(blocked)):
        jax.config.update("jax_compilation_cache_dir", other)
        function = Traced()
        call(function, 2)
        call(function, 2)
        assert function.count == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_shapes_of_a_model_are_read_back(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = facejax.models.variable_shapes("ssrnet", dtype="bfloat16")
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(jax, "eval_shape", None)
    read = facejax.models.variable_shapes("ssrnet", dtype="bfloat16")
    chex.assert_trees_all_equal_structs(read, made)
    assert jax.tree.leaves(read) == jax.tree.leaves(made)


def test_models_of_elsewhere_and_options_without_a_written_form_are_not_kept(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facejax.models.variable_shapes("ssrnet", dtype=jnp.bfloat16)
    own = dataclasses.replace(facejax.model_info("ssrnet"), constructor="test_programs:OwnNet", options={})
    monkeypatch.setitem(facejax.models.MODELS, "own", own)
    monkeypatch.setitem(sys.modules, "test_programs", sys.modules[__name__])
    assert facejax.models.variable_shapes("own")["params"]["Dense_0"]["kernel"].shape == (3, 2)
    assert not folder.exists()
