#!/usr/bin/env bash
# Grain's IndexSampler never reads some records where the number of shards does not divide that of the records, although
# ShardOptions has drop_remainder=False, whose shards "may not be of equal size". Ten records over four shards: two are in
# no shard. An evaluation over several processes silently leaves them out.
#
# `grain.MapDataset.range(n)[shard::shards]` has all records.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet grain==0.2.18 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys
from importlib.metadata import version

import grain.python as grain

print("grain", version("grain"))
missing = []
for shards in (1, 2, 3, 4):
    read, sliced = [], []
    for shard in range(shards):
        options = grain.ShardOptions(shard, shards, drop_remainder=False)
        sampler = grain.IndexSampler(10, options, shuffle=False, num_epochs=1, seed=0)
        read += list(grain.DataLoader(data_source=list(range(10)), sampler=sampler, worker_count=0))
        sliced += list(grain.MapDataset.range(10)[shard::shards])
    missing.append(sorted({*range(10)} - {*read}))
    print(f"10 records over {shards} shards: IndexSampler never reads {missing[-1]}, slices miss {sorted({*range(10)} - {*sliced})}")
sys.exit(missing != [[], [], [3], [2, 5]])
PYTHON
