"""Two users of one machine at the same time: neither stands in the other's way, or reads of him."""

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.campaign.conftest import differences
from tests.campaign.victims import holding
from tests.workflow.conftest import Workflow, environment
from tests.workflow.processes import processes_of

pytestmark = [pytest.mark.campaign, pytest.mark.slow]
NOBODY = pwd.getpwnam("nobody").pw_uid
TARGET = "results/toy/pca/umap.h5"

#: As another user, in a namespace of its own where it may reach the folder of Python.
AS_USER = """
set -e
mkdir -p "$1/python"
mount --bind "$2" "$1/python"
if ! setpriv --reuid "$3" --regid "$3" --clear-groups test -x "$2/bin/python3"; then
    mount -t tmpfs -o mode=755 tmpfs "/$(echo "$2" | cut -d/ -f2)"
    mkdir -p "$2"
    mount --bind "$1/python" "$2"
fi
user=$3
shift 3
exec setpriv --reuid "$user" --regid "$user" --clear-groups "$@"
"""
TRY = """
import socket, ssl, sys
for address in sys.argv[1:]:
    try:
        if address.startswith("/"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(address)
            print("reached", address)
        else:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with socket.create_connection(("127.0.0.1", int(address)), timeout=5) as plain:
                with context.wrap_socket(plain) as connection:
                    connection.sendall(b"x" * 64)
                    if answer := connection.recv(64):
                        print("answered", address, answer)
    except OSError as error:
        print("refused", address, error)
"""


class AsNobody(Workflow):
    """The workflow, run by the user nobody; its folders lie in one that is his."""

    @property
    def home(self) -> Path:
        return self.folder.parent

    def command(self, *command: str) -> list[str]:
        """Return a command that runs another as nobody, under the same process number."""
        scratch = self.home / "scratch"
        wrapper = ["unshare", "--mount", "sh", "-c", AS_USER, "sh"]
        given = [
            scratch,
            sys.base_prefix,
            NOBODY,
            "env",
            "-u",
            "XDG_RUNTIME_DIR",
            f"HOME={self.home}",
        ]
        return [*wrapper, *map(str, [*given, *command])]

    def start(self, *targets, options=(), **popen):
        arguments = [*self._arguments(*options), "--", *targets]
        command = self.command(sys.executable, "-m", "snakemake", *arguments)
        return subprocess.Popen(command, env=environment(), text=True, process_group=0, **popen)


@pytest.fixture
def place():
    """A folder that every user may enter, which pytest's own are not."""
    if os.getuid() != 0:
        pytest.skip("only root can run as another user")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def users(done, place) -> tuple[Workflow, AsNobody]:
    """The complete run, as it is of the first user and of the second, each with his own clone."""
    found = []
    for name, kind in (("first", Workflow), ("second", AsNobody)):
        (place / name).mkdir()
        copy = done.at(place / name / "work").clone(place / name / "code").over("worker: warm")
        (copy.folder / TARGET).unlink()
        found.append(kind(copy.code, copy.folder, copy.config))
    second = found[1]
    for path in [second.home, *second.home.rglob("*")]:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    tried = subprocess.run(
        second.command(sys.executable, "-c", "import snakemake"),
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        pytest.skip(f"another user cannot run Python here: {tried.stderr.strip()[-300:]}")
    return tuple(found)


def listening(run: subprocess.Popen) -> list[str]:
    """List where the processes of a run listen: paths of sockets, and ports."""
    found = set()
    for pid in processes_of(run.pid):
        process = psutil.Process(pid)
        ports = process.net_connections("inet")
        found |= {str(one.laddr.port) for one in ports if one.status == psutil.CONN_LISTEN}
        found |= {str(one.laddr) for one in process.net_connections("unix")}
    return sorted(address for address in found if address.isdigit() or address.startswith("/"))


def test_two_users_at_the_same_time(done, users, place, monkeypatch, subtests):
    first, second = users
    holds = place / "first/hold", place / "second/hold"
    holds[1].mkdir()
    holds[1].chmod(0o777)
    with (
        holding(first, holds[0], monkeypatch, TARGET, TARGET) as one,
        holding(second, holds[1], monkeypatch, TARGET, TARGET) as two,
    ):
        with subtests.test("a second user: what runs is his"):
            assert {os.stat(f"/proc/{pid}").st_uid for pid in processes_of(two.run.pid)} == {NOBODY}
            assert {os.stat(f"/proc/{pid}").st_uid for pid in processes_of(one.run.pid)} == {0}
        with subtests.test("a second user: no engine answers the other"):
            addresses = listening(one.run)
            assert addresses
            tried = subprocess.run(
                second.command(sys.executable, "-c", TRY, *addresses),
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            assert [line.split()[0] for line in tried.splitlines()] == ["refused"] * len(addresses)
        for hold in holds:
            (hold / "held").unlink()
        for held in (one, two):
            assert held.run.wait(timeout=60) == 0, held.output.read_text()
    for workflow, user in zip(users, (0, NOBODY), strict=True):
        with subtests.test("a second user: both have their results"):
            assert (workflow.folder / TARGET).stat().st_uid == user
            assert differences(workflow.folder / "results", done.folder / "results") == []


def test_a_second_user_in_the_folder_of_the_first(users, subtests):
    first, second = users
    before = {path: path.lstat().st_mtime_ns for path in first.folder.rglob("*")}
    trespasser = AsNobody(second.code, first.folder, second.config)
    command = [*trespasser._arguments(), "--", TARGET]
    ran = subprocess.run(
        second.command(sys.executable, "-m", "snakemake", *command),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    with subtests.test("a second user: in the folder of the first"):
        assert ran.returncode == 1
        assert "cannot be written to by nobody; it belongs to root" in ran.stdout + ran.stderr
        assert "Traceback" not in ran.stdout + ran.stderr
        assert before == {path: path.lstat().st_mtime_ns for path in first.folder.rglob("*")}
