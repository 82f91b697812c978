"""``psql \\copy`` of the ordered query into a file, and fsync of the file."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

given = json.loads(sys.argv[1])
target = Path(given["folder"]) / f"copied-{os.getpid()}.csv"
command = f"\\copy ({given['query']} ORDER BY id) TO '{target}' (FORMAT csv, HEADER)"
began = time.perf_counter()
subprocess.run([given["psql"], given["database"], "-qc", command], check=True)
with target.open("rb+") as file:
    os.fsync(file.fileno())
seconds = time.perf_counter() - began
size = target.stat().st_size
version = subprocess.run([given["psql"], "--version"], capture_output=True, text=True, check=True)
print(
    json.dumps({"figure": given["count"] / seconds, "bytes": size, "psql": version.stdout.strip()})
)
