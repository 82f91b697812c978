"""dlt: ``sql_table`` with the pyarrow backend into a folder as CSV, tuned as its performance guide
says: large chunks, no normalization of names of tables it need not look at.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

TUNED = {"backend": "pyarrow", "chunk_size": 100_000}
given = json.loads(sys.argv[1])
folder = Path(given["folder"]) / f"dlt-{os.getpid()}"
os.environ |= {
    "DLT_DATA_DIR": str(folder / "data"),
    "RUNTIME__DLTHUB_TELEMETRY": "false",
    "RUNTIME__LOG_LEVEL": "CRITICAL",
    "EXTRACT__WORKERS": "2",
    "NORMALIZE__WORKERS": "2",
    "NORMALIZE__DATA_WRITER__DISABLE_COMPRESSION": "true",
}

import dlt  # noqa: E402  # reads its settings when it is imported
import sqlalchemy as sa  # noqa: E402
from dlt.destinations import filesystem  # noqa: E402
from dlt.sources.sql_database import sql_table  # noqa: E402

if __name__ == "__main__":
    engine = sa.create_engine(given["database"].replace("postgresql://", "postgresql+psycopg://"))

    def limited(query, table):
        return query.where(table.c.id <= given["count"]).order_by(table.c.id)

    rows = sql_table(engine, table="payout", query_adapter_callback=limited, **TUNED)
    place = filesystem(bucket_url=(folder / "out").as_uri())
    pipeline = dlt.pipeline(
        "bench", destination=place, dataset_name="all", pipelines_dir=str(folder / "p")
    )
    began = time.perf_counter()
    pipeline.run(rows, loader_file_format="csv").raise_on_failed_jobs()
    seconds = time.perf_counter() - began
    lines = sum(sum(1 for _ in file.open("rb")) for file in folder.glob("out/all/payout/*.csv*"))
    facts = {"lines": lines, "peer": version("dlt"), **TUNED}
    print(json.dumps({"figure": given["count"] / seconds, **facts}))
