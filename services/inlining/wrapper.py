"""`fourfold clang`: the user's own clang, with its inlining decided by a local copy of the policy.

Run as `python -m services.inlining.wrapper [--clang COMMAND] [--policy FOLDER] [--fast] -- ARGUMENTS`. It compiles as
stock does and as advised, side by side, and the smaller object stays; at a tie stock's. `--fast` compiles once, as
advised. Whatever is not one compile for size of one source, and whatever goes wrong, is plain clang's; the reason is a
line on standard error (FOURFOLD_QUIET=1 keeps even that away). What a compile does not need is imported where it is
used, since a build starts this for every file. `--launcher FILE` makes a program that does `--fast` without Python.
"""

from __future__ import annotations

# Not `signal`, which brings `enum` along: 3 ms for every file.
import _signal  # pyright: ignore[reportMissingImports]
import os
import sys

from services.inlining.channel import Channel, ChannelBroken
from services.inlining.resident import host_resident, new_folder, remove_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    Host = Callable[[Channel, int], None]  # answers on the channel until the compiler of the pidfd has ended

NAMES = ("clang-22", "clang-21", "clang-20", "clang-19", "clang")
SOURCES = {".c", ".cc", ".cpp", ".cxx", ".C", ".m", ".i", ".ii", ".bc", ".ll"}
SIZE_LEVELS = {"-Oz", "-Os"}
# Compiles that make no object, or more than one file of it.
_OTHER = {"-E", "-S", "-M", "-MM", "-fsyntax-only", "-emit-llvm", "-gsplit-dwarf", "--coverage", "-", "--analyze"}
# Of the advised compile beside stock's: what would write the same files a second time.
_DROPPED = {"-MD", "-MMD", "-MP", "-MG"}
_DROPPED_WITH_VALUE = {"-MF", "-MT", "-MQ", "-MJ"}
_DROPPED_STARTS = ("-MF", "-MT", "-MQ", "-MJ", "-Wp,-M", "-o")  # with the value in the same word
_WITH_VALUE = {"-o", "-x", "-I", "-D", "-U", "-include", "-isystem", "-Xclang", "-mllvm", "-arch", "-target", "-iquote"}
_SIGPIPE, _SIGTERM, _SIGXFSZ = 13, 15, 25  # of Linux; Python ignores the first and the last, and clang must not


class Fallback(Exception):
    """Why plain clang does it."""


class Compile:
    """One source to one object; `arguments` are all of them, as given."""

    __slots__ = ("arguments", "output", "source")

    def __init__(self, source: str, output: str, arguments: list[str]) -> None:
        self.source = source
        self.output = output
        self.arguments = arguments

    def beside(self, output: str) -> list[str]:
        """The arguments for a second compile of it to another object, which writes nothing else."""
        found: list[str] = []
        skip = False
        for index, argument in enumerate(self.arguments):
            if skip:
                skip = False
            elif argument in _DROPPED_WITH_VALUE or argument == "-o":
                skip = index + 1 < len(self.arguments)
            elif argument not in _DROPPED and not argument.startswith(_DROPPED_STARTS):
                found.append(argument)
        return [*found, "-o", output]


def understand(arguments: Sequence[str]) -> Compile | None:
    """The compile that the arguments ask for, or None if it is not one of one source for size."""
    level, output, sources = "", "", list[str]()
    compiles = False
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        index += 1
        if argument in _OTHER or argument.startswith(("@", "-save-temps", "-fprofile", "-ftest-coverage", "-flto")):
            return None
        if argument == "-c":
            compiles = True
        elif argument.startswith("-O"):
            level = argument
        elif argument == "-o" and index < len(arguments):
            output = arguments[index]
        elif argument.startswith("-o"):
            output = argument[2:]
        elif not argument.startswith("-") and os.path.splitext(argument)[1] in SOURCES:
            sources.append(argument)
        if argument in _WITH_VALUE or argument in _DROPPED_WITH_VALUE:
            index += 1
    if not compiles or level not in SIZE_LEVELS or len(sources) != 1:
        return None
    return Compile(sources[0], output or os.path.splitext(os.path.basename(sources[0]))[0] + ".o", list(arguments))


def find_clang(given: str | None) -> list[str]:
    """The user's clang as a command: given, in FOURFOLD_CLANG, or the newest on the path; raises Fallback."""
    asked = given or os.environ.get("FOURFOLD_CLANG")
    if asked and not any(letter in asked for letter in " \t\n'\"\\"):
        return [asked]
    if asked:
        import shlex

        return shlex.split(asked)
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    for name in NAMES:
        for folder in folders:
            found = os.path.join(folder, name)
            if os.path.isfile(found) and os.access(found, os.X_OK):
                return [found]
    raise Fallback("there is no clang on the path; name one in FOURFOLD_CLANG")


def policy_folder(given: str | None) -> str:
    """Given, in FOURFOLD_POLICY, or the policy that comes with the package."""
    return given or os.environ.get("FOURFOLD_POLICY") or os.path.join(os.path.dirname(__file__), "pretrained")


class Running:
    """A compiler that runs; use it with `with`: left before it has ended, it is killed. `quiet`: it says nothing."""

    def __init__(self, command: list[str], quiet: bool = False) -> None:
        actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        if quiet:
            actions += [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
        self._code: int | None = None
        self.pid = os.posix_spawnp(
            command[0], command, os.environ, file_actions=actions, setsigdef=(_SIGPIPE, _SIGXFSZ)
        )

    def wait(self) -> int:
        """Its exit status; of a signal 128 more, as a shell has it."""
        if self._code is None:
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self._code = code if code >= 0 else 128 - code
        return self._code

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self._code is None:
            os.kill(self.pid, 9)
            self.wait()


def advised(clang: Sequence[str], arguments: Sequence[str], host: Host, folder: str, quiet: bool) -> int:
    """Compile with every decision the policy's: clang's exit status; Fallback where it spoke no channel we know."""
    try:
        with Channel(folder, os.path.join(folder, "channel"), default=False) as channel:
            options = [part for option in channel.options for part in ("-mllvm", option)]
            with Running([*clang, *arguments, *options], quiet) as compiler:
                watch = os.pidfd_open(compiler.pid)
                try:
                    host(channel, watch)
                    return compiler.wait()
                finally:
                    os.close(watch)
    except (ChannelBroken, OSError, ValueError, KeyError, ImportError) as error:
        raise Fallback(f"the policy cannot be asked ({error})") from None


def compile_smaller(clang: Sequence[str], wanted: Compile, host: Host, folder: str) -> int:
    """Stock and advised side by side; the smaller object is left. Stock's words and exit status are the answer."""
    with Running([*clang, *wanted.arguments]) as stock:
        smaller = os.path.join(folder, "object.o")
        trouble = None
        try:
            status = advised(clang, wanted.beside(smaller), host, folder, quiet=True)
            if status != 0:
                trouble = f"the advised compile ended with {status}"
        except Fallback as error:
            trouble = str(error)
        code = stock.wait()
        if code != 0:
            return code
        if trouble is not None:
            _note(f"plain clang for {wanted.source}: {trouble}")
            return code
        try:
            better, known = _read(smaller), _read(wanted.output)
            if better != known and _text_of(better) < _text_of(known):
                _replace(wanted.output, better)
        except (ValueError, OSError):
            pass  # an object of another form than ELF, or no file: it stays stock's
        return code


def compile_fast(clang: Sequence[str], wanted: Compile, host: Host, folder: str) -> int:
    """Once, as advised; plain clang again where that fails."""
    try:
        status = advised(clang, wanted.arguments, host, folder, quiet=False)
        if status == 0:
            return 0
        reason = f"the advised compile ended with {status}"
    except Fallback as error:
        reason = str(error)
    _note(f"plain clang for {wanted.source}: {reason}")
    with Running([*clang, *wanted.arguments]) as compiler:
        return compiler.wait()


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _text_of(code: bytes) -> int:
    from services.inlining.sizes import text_total

    return text_total(code)


def _replace(path: str, code: bytes) -> None:
    # Beside it first: the replacement is then one step, and the mode is clang's own.
    draft = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}")
    with open(draft, "wb") as file:
        file.write(code)
    os.chmod(draft, os.stat(path).st_mode & 0o7777)
    os.replace(draft, path)


def _note(words: str) -> None:
    if os.environ.get("FOURFOLD_QUIET") != "1":
        print(f"fourfold: {words}", file=sys.stderr)


def main(given: Sequence[str]) -> int:
    """Exit status of the compile."""
    try:
        return _compile(given)
    except (Fallback, OSError) as error:  # not even plain clang could be started
        print(f"fourfold: {error}", file=sys.stderr)
        return 127
    except KeyboardInterrupt:
        return 130


def _compile(given: Sequence[str]) -> int:
    options = {"--clang": "", "--policy": "", "--launcher": ""}
    fast = os.environ.get("FOURFOLD_FAST") == "1"
    rest = list(given)
    while rest and rest[0] != "--" and rest[0].startswith("--"):
        name, equals, value = rest.pop(0).partition("=")
        if name == "--fast":
            fast = True
        elif name in options and (equals or rest):
            options[name] = value if equals else rest.pop(0)
        else:
            rest.insert(0, name)
            break
    arguments = rest[1:] if rest[:1] == ["--"] else rest
    clang = find_clang(options["--clang"])
    policy = policy_folder(options["--policy"])
    if options["--launcher"]:
        from services.inlining.launcher import build_launcher

        return build_launcher(options["--launcher"], clang, policy)
    wanted = understand(arguments)
    if wanted is None:
        _become(clang, arguments)
    try:
        folder = new_folder()
    except OSError as error:
        _note(f"plain clang for {wanted.source}: {error}")
        _become(clang, arguments)
    _signal.signal(_SIGTERM, lambda *_: sys.exit(143))
    try:
        compile_ = compile_fast if fast else compile_smaller
        return compile_(clang, wanted, lambda channel, ended: host_resident(policy, channel, ended), folder)
    finally:
        remove_folder(folder)


def _become(clang: Sequence[str], arguments: Sequence[str]) -> NoReturn:
    for number in (_SIGPIPE, _SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)
    os.execvp(clang[0], [*clang, *arguments])


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # there is nothing to tear down, which would take 2 ms
