"""The tables of a log on a server, and how they are made once by many who start together.

Invariant: whoever finds tables finds all of them: they are made under a lock, and the row that
says which version they are is the last thing written.  The names are those of the file's schema,
behind the prefix.  Leaves out the drivers.
"""

from __future__ import annotations

__all__ = ["MYSQL", "POSTGRES", "SCHEMA_VERSION", "statements"]

SCHEMA_VERSION = 1

POSTGRES = """
CREATE TABLE IF NOT EXISTS {topic} (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL, name text NOT NULL, UNIQUE (kind, name)
);
CREATE TABLE IF NOT EXISTS {source} (
    id integer PRIMARY KEY, next bigint NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS {chunk} (
    source integer NOT NULL, last bigint NOT NULL, count integer NOT NULL,
    created_at double precision NOT NULL, data bytea NOT NULL, PRIMARY KEY (source, last)
);
CREATE TABLE IF NOT EXISTS {claim} (
    source integer NOT NULL, grp text NOT NULL, position bigint NOT NULL,
    token bigint NOT NULL DEFAULT 0, holder text, until double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (source, grp)
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS {member} (
    topic integer NOT NULL, grp text NOT NULL, holder text NOT NULL,
    until double precision NOT NULL, PRIMARY KEY (topic, grp, holder)
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS {epoch} (
    id integer PRIMARY KEY, value bigint NOT NULL, version integer NOT NULL
) WITH (fillfactor = 50);
INSERT INTO {epoch} (id, value, version) VALUES (1, 1, 1) ON CONFLICT DO NOTHING
"""

# Names are compared byte by byte: no collation may take Orders for orders.
MYSQL = """
CREATE TABLE IF NOT EXISTS {topic} (
    id INT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    kind VARCHAR(20) NOT NULL, name VARCHAR(255) NOT NULL, UNIQUE (kind, name)
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
CREATE TABLE IF NOT EXISTS {source} (
    id INT NOT NULL PRIMARY KEY, next BIGINT NOT NULL
) ENGINE = InnoDB;
CREATE TABLE IF NOT EXISTS {chunk} (
    source INT NOT NULL, last BIGINT NOT NULL, count INT NOT NULL,
    created_at DOUBLE NOT NULL, data LONGBLOB NOT NULL, PRIMARY KEY (source, last)
) ENGINE = InnoDB;
CREATE TABLE IF NOT EXISTS {claim} (
    source INT NOT NULL, grp VARCHAR(255) NOT NULL, position BIGINT NOT NULL,
    token BIGINT NOT NULL DEFAULT 0, holder VARCHAR(255), until DOUBLE NOT NULL DEFAULT 0,
    PRIMARY KEY (source, grp)
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
CREATE TABLE IF NOT EXISTS {member} (
    topic INT NOT NULL, grp VARCHAR(255) NOT NULL, holder VARCHAR(255) NOT NULL,
    until DOUBLE NOT NULL, PRIMARY KEY (topic, grp, holder)
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
CREATE TABLE IF NOT EXISTS {epoch} (
    id INT NOT NULL PRIMARY KEY, value BIGINT NOT NULL, version INT NOT NULL
) ENGINE = InnoDB;
INSERT IGNORE INTO {epoch} (id, value, version) VALUES (1, 1, 1)
"""


def statements(text: str) -> list[str]:
    """The statements of a text, one by one."""
    return [part.strip() for part in text.split(";\n") if part.strip()]
