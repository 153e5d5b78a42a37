"""Three hosts with SSH, and the machine from which `ray up cluster/onpremise.yaml` is run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from machines import (
    HOME,
    NICENESS,
    USER,
    USER_ID,
    Machine,
    Network,
    _wait,
    checkout,
    install,
    owned_by_user,
    package_mirror,
    prepare_venv,
    user_home,
)

HOSTS = ("head", "worker1", "worker2")
CHECKOUT = HOME / "checkout"
SSHD = (
    "exec /usr/sbin/sshd -D -e -o HostKey=/srv/host_key -o PidFile=none -o UsePAM=no "
    f"-o PasswordAuthentication=no -o SetEnv={NICENESS}"
)


class OnPremise:
    """The hosts, each with a home folder of its own, and `laptop`, with a checkout."""

    def __init__(self, folder: Path):
        install("openssh-server", "openssh-client", "rsync", "iproute2", "python3-venv", "curl")
        self.log = folder / "log"
        self.log.mkdir()
        srv = folder / "srv"
        srv.mkdir()
        package_mirror(srv / "mirror")
        self.network = Network(folder, ("laptop", *HOSTS))
        self.homes: dict[str, Path] = {}
        for name in ("laptop", *HOSTS):
            home = user_home(folder / f"home-{name}")
            self.homes[name] = home / USER
            for file in (".profile", ".bashrc"):
                shutil.copy2(Path("/etc/skel") / file, home / USER / file)
            owned_by_user(home)
            self.network.add(name, home, srv)
        self.laptop = self.network.machines["laptop"]
        self.hosts: dict[str, Machine] = {name: self.network.machines[name] for name in HOSTS}
        self.laptop.run("mkdir -m 700 .ssh && ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519")
        key = (self.homes["laptop"] / ".ssh/id_ed25519.pub").read_text()
        self.laptop.run("ssh-keygen -q -t ed25519 -N '' -f /srv/host_key", "root")
        for name in HOSTS:
            authorized = self.homes[name] / ".ssh" / "authorized_keys"
            authorized.parent.mkdir(mode=0o700)
            authorized.write_text(key)
            prepare_venv(self.hosts[name], self.homes[name].parent, "/srv/mirror")
            self.hosts[name].start(SSHD, self.log / f"sshd-{name}")
        prepare_venv(self.laptop, self.homes["laptop"].parent, "/srv/mirror")
        self.checkout = self.homes["laptop"] / "checkout"
        self.checkout.mkdir()
        checkout(self.checkout)
        self.configure()

    def configure(self) -> None:
        """Sets in the recipe what its header tells a user to set."""
        recipe = self.checkout / "cluster" / "onpremise.yaml"
        content = recipe.read_text()
        for before, after in (
            ("head_ip: 192.0.2.10", f"head_ip: {self.hosts['head'].address}"),
            ("192.0.2.11", self.hosts["worker1"].address),
            ("192.0.2.12", self.hosts["worker2"].address),
            ("--num-gpus=1", "--num-gpus=0"),
        ):
            assert content.count(before) == 1, before
            content = content.replace(before, after)
        recipe.write_text(content)

    def share(self, server: str) -> Path:
        """Makes ~/shared of one host the others' too; it is returned as this machine sees it.

        A file system of the kernel's, as with NFS, with sshfs behind it: not every kernel has NFS.
        """
        install("sshfs")
        self.laptop.run("ssh-keygen -q -t ed25519 -N '' -f /srv/share_key", "root")
        self.hosts[server].run("mkdir shared && cat /srv/share_key.pub >>.ssh/authorized_keys")
        options = (
            f"allow_other,uid={USER_ID},gid={USER_ID},IdentityFile=/srv/share_key,"
            "StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null"
        )
        source = f"{USER}@{self.hosts[server].address}:{HOME}/shared"
        for name in HOSTS:
            if name != server:
                self.hosts[name].run("mkdir shared")
                self.hosts[name].run(f"sshfs -o {options} {source} {HOME}/shared", "root")
        return self.homes[server] / "shared"

    def line(self, line: str) -> str:
        """As the header's commands are given: in the checkout, with the token."""
        return (
            f"cd {CHECKOUT} && . ~/toolagent-venv/bin/activate && "
            "export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 && "
            f"{line}"
        )

    def run(self, line: str, timeout: float = 300, check: bool = True) -> str:
        return self.laptop.run(self.line(line), timeout=timeout, check=check)

    def api(self, path: str):
        """What the dashboard answers to the laptop, through the forwarded port."""
        token = "$(cat ~/.ray/auth_token)"
        said = self.laptop.run(
            f'curl --silent --fail --max-time 20 -H "Authorization: Bearer {token}" '
            f"http://127.0.0.1:8265{path}",
            check=False,
        )
        try:
            return json.loads(said)
        except ValueError:
            return None

    def jobs(self) -> dict[str, str]:
        """The submitted jobs' states, by their ids."""
        found = self.api("/api/jobs/") or []
        return {job["submission_id"]: job["status"] for job in found if job["submission_id"]}

    def alive(self) -> int:
        """How many nodes the cluster has."""
        answer = self.api("/api/v0/nodes?detail=false") or {}
        listed = answer.get("data", {}).get("result", {}).get("result", [])
        return sum(node["state"] == "ALIVE" for node in listed)

    def ray_processes(self, name: str) -> list[str]:
        return [line for line in self.hosts[name].command_lines() if "ray" in line]

    def wait_for(self, what, seconds: float):
        return _wait(what, seconds)

    def end(self) -> None:
        self.network.end()
