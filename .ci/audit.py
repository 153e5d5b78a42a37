"""Known vulnerabilities among the installed packages: reads `pip-audit --format json` on stdin.

Fails on one that a newer release mends. One that nothing mends yet is printed. Where no advisory
database is within reach, nothing was audited, and that is what it says.
"""

from __future__ import annotations

import json
import sys


def main() -> int:
    """The exit code."""
    packages = json.load(sys.stdin)["dependencies"]
    audited = [package for package in packages if "vulns" in package]
    if not audited:
        print(f"NOT AUDITED: no advisory database is within reach ({len(packages)} packages)")
        return 0
    to_mend = 0
    for package in audited:
        for vulnerability in package["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"])
            to_mend += bool(fixed)
            name = f"{package['name']} {package['version']}"
            print(f"{name}: {vulnerability['id']}, {f'mended in {fixed}' if fixed else 'no fix'}")
    print(f"{len(audited)} of {len(packages)} packages audited, {to_mend} to be updated")
    return 1 if to_mend else 0


if __name__ == "__main__":
    sys.exit(main())
