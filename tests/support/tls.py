"""Certificates made on the spot, for Ray's own traffic."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path


def tls_environment(folder: Path, addresses: Sequence[str]) -> dict[str, str]:
    """Variables with which all processes of a Ray speak TLS to each other.

    One certificate, which signs itself, serves all nodes: it names every address. The dashboard,
    and so the Jobs API, is plain HTTP all the same.
    """
    folder.mkdir()
    certificate, key = folder / "cert.pem", folder / "key.pem"
    names = ",".join(["DNS:localhost", "IP:127.0.0.1", *(f"IP:{item}" for item in addresses)])
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=ray", "-addext", f"subjectAltName={names}"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(certificate),
        "RAY_TLS_SERVER_KEY": str(key),
        "RAY_TLS_CA_CERT": str(certificate),
    }
