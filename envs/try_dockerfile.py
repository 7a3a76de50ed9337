"""Execute the lines of the Dockerfile in a bare Debian, where there is no container engine.

Usage, as root::

    python envs/try_dockerfile.py FOLDER [--arg NAME=VALUE ...] [--user UID] [-- COMMAND ...]

debootstrap makes the Debian that FROM names in FOLDER/base, once. Each call starts from a copy,
FOLDER/image, and carries out the Dockerfile's instructions in order: RUN in a chroot with the ARG,
ENV and WORKDIR that it would have, COPY from the files that git tracks or would track. Then COMMAND
runs there, or the Dockerfile's CMD, as its USER. Unlike with an engine the network is the host's,
nothing is isolated, and the architecture is this machine's.

A machine whose network needs certificates of its own names them in SSL_CERT_FILE: that file is laid
into the image for the time of a command.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What an engine would do that has no effect on the commands here.
WITHOUT_EFFECT = {"EXPOSE", "VOLUME", "ENTRYPOINT"}


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with what follows each, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = (line.split(None, 1) for line in joined.splitlines())
    return [(name.upper(), rest.strip()) for name, rest in pairs]


class Image:
    """A folder with a Debian in it, and what the instructions so far have set.

    Parameters
    ----------
    folder
        The root of the image's files.
    arguments
        Values for ARG, as ``docker build --build-arg`` gives them.
    """

    def __init__(self, folder: Path, arguments: dict[str, str]):
        self.folder, self.arguments = folder, arguments
        self.variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.declared: dict[str, str] = {}
        self.workdir, self.user, self.command = "/", "0", []

    def do(self, name: str, rest: str) -> None:
        """Carry an instruction out."""
        if name in WITHOUT_EFFECT:
            return
        method = getattr(self, f"_{name.lower()}", None)
        if method is None:
            sys.exit(f"Dockerfile: {name} is not known here; add it to envs/try_dockerfile.py")
        print(f"--- {name} {rest}", flush=True)
        method(rest)

    def run(self, command: list[str], user: str | None = None) -> None:
        """Run a command in the image; stop where it fails."""
        certificates = os.environ.get("SSL_CERT_FILE")
        own = {"SSL_CERT_FILE": "/run/certificates.pem"} if certificates else {}
        lines = [
            "set -e",
            'mount --rbind /dev "$1/dev"',
            'mount --rbind /sys "$1/sys"',
            'mount -t proc proc "$1/proc"',
            'cp /etc/resolv.conf "$1/etc/resolv.conf"',
        ]
        if certificates:
            lines.append(f'cp {shlex.quote(certificates)} "$1/run/certificates.pem"')
        lines.append('root=$1 user=$2; shift 2; exec chroot --userspec="$user" "$root" env -i "$@"')
        variables = {**self.declared, **self.variables, **own}
        inner = 'cd "$WORKDIR" && exec "$@"'
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines), "sh"]
            + [str(self.folder), user or f"{self.user}:{self.user}"]
            + [f"{name}={value}" for name, value in variables.items()]
            + [f"WORKDIR={self.workdir}", "sh", "-c", inner, "sh", *command],
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            sys.exit(f"failed with {done.returncode}: {shlex.join(command)}")

    def _expand(self, text: str) -> str:
        known = {**self.declared, **self.variables}
        return re.sub(r"\$(\w+)", lambda match: known.get(match[1], ""), text)

    def _from(self, rest: str) -> None:
        suite = re.fullmatch(r"debian:(\w+)-slim", rest)
        if not suite:
            sys.exit(f"FROM {rest}: only debian:SUITE-slim can be made here")
        base = self.folder.with_name("base")
        if not (base / "made").exists():
            shutil.rmtree(base, ignore_errors=True)
            subprocess.run(["debootstrap", "--variant=minbase", suite[1], base], check=True)
            (base / "made").touch()
        shutil.rmtree(self.folder, ignore_errors=True)
        subprocess.run(["cp", "-a", base, self.folder], check=True)

    def _arg(self, rest: str) -> None:
        name, _, default = rest.partition("=")
        self.declared = {**self.declared, name: self.arguments.get(name, self._expand(default))}

    def _env(self, rest: str) -> None:
        pairs = [pair.partition("=") for pair in shlex.split(rest)]
        self.variables |= {name: self._expand(value) for name, _, value in pairs}

    def _workdir(self, rest: str) -> None:
        self.workdir = rest
        self._inside(rest).mkdir(parents=True, exist_ok=True)

    def _user(self, rest: str) -> None:
        self.user = rest

    def _cmd(self, rest: str) -> None:
        self.command = json.loads(rest)

    def _run(self, rest: str) -> None:
        self.run(["sh", "-c", rest])

    def _copy(self, rest: str) -> None:
        *sources, target = rest.split()
        tracked = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *sources],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.split("\0")  # fmt: skip
        for name in filter(None, tracked):
            # A file that is named keeps its name; one in a folder that is copied keeps its path.
            place = Path(name).name if name in sources else name
            path = self._inside(target) / place
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, path, follow_symlinks=False)

    def _inside(self, path: str) -> Path:
        return self.folder / str(Path(self.workdir) / path).lstrip("/")


def main() -> None:
    """Build the image and run the command in it."""
    usage = "python envs/try_dockerfile.py FOLDER [options] [-- COMMAND ...]"
    parser = argparse.ArgumentParser(usage=usage, description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the Debian goes; some GB")
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--user", help="run the command as this user id, as docker run --user does")
    parser.add_argument("--built", action="store_true", help="in the last call's image as it is")
    options, command = sys.argv[1:], []
    if "--" in options:
        options, command = options[: options.index("--")], options[options.index("--") + 1 :]
    given = parser.parse_args(options)
    if os.geteuid():
        sys.exit("envs/try_dockerfile.py needs root: it uses debootstrap and chroot")
    given.folder.mkdir(parents=True, exist_ok=True)
    image = Image(given.folder.resolve() / "image", dict(pair.split("=", 1) for pair in given.arg))
    for name, rest in instructions((ROOT / "Dockerfile").read_text()):
        if not (given.built and name in {"FROM", "RUN", "COPY"}):
            image.do(name, rest)
    user = f"{given.user}:{given.user}" if given.user else None
    image.run(command or image.command, user)


if __name__ == "__main__":
    main()
