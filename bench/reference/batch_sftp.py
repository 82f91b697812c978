"""OpenSSH: ``sftp`` puts the file under its final name and the server syncs it; no check."""

import json
import subprocess
import sys
import time
from urllib.parse import urlsplit


def main(given):
    place = urlsplit(given["server"])
    options = ["-oBatchMode=yes", f"-oIdentityFile={given['key']}", "-oIdentitiesOnly=yes"]
    options += [f"-oUserKnownHostsFile={given['known_hosts']}", f"-oCiphers={given['cipher']}"]
    options += ["-oStrictHostKeyChecking=yes", "-F", "/dev/null", "-P", str(place.port)]
    words = f"put -f {given['file']} {place.path}/{given['name']}\n"
    began = time.perf_counter()
    subprocess.run(
        ["sftp", "-q", *options, "-b", "-", f"{place.username}@{place.hostname}"],
        input=words.encode(),
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=170,
    )
    seconds = time.perf_counter() - began
    facts = {"figure": given["size"] / 1e6 / seconds, "seconds": round(seconds, 2)}
    print(json.dumps({**facts, "cipher": given["cipher"]}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
