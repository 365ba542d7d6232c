"""`fourfold clang`: the user's own clang, with its inlining decided by a local copy of the policy.

Run as `python -m services.inlining.wrapper [--clang COMMAND] [--policy FOLDER] [--fast] -- ARGUMENTS`. It compiles as
stock does and as advised, side by side, and the smaller object stays; at a tie stock's. `--fast` compiles once, as
advised. Whatever is not one compile for size of one source, and whatever goes wrong, is plain clang's; the reason is a
line on standard error (FOURFOLD_QUIET=1 keeps even that away). What a compile does not need is imported where it is
used, since a build starts this for every file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from services.inlining.channel import Channel, ChannelBroken
from services.inlining.resident import host_resident, runtime_folder

NAMES = ("clang-22", "clang-21", "clang-20", "clang-19", "clang")
SOURCES = {".c", ".cc", ".cpp", ".cxx", ".C", ".m", ".i", ".ii", ".bc", ".ll"}
SIZE_LEVELS = {"-Oz", "-Os"}
Host = Callable[[Channel, int], None]  # answers on the channel until the compiler of the pidfd has ended
# Compiles that make no object, or more than one file of it.
_OTHER = {"-E", "-S", "-M", "-MM", "-fsyntax-only", "-emit-llvm", "-gsplit-dwarf", "--coverage", "-", "--analyze"}
# Of the advised compile beside stock's: what would write the same files a second time.
_DROPPED = {"-MD", "-MMD", "-MP", "-MG"}
_DROPPED_WITH_VALUE = {"-MF", "-MT", "-MQ", "-MJ"}
_DROPPED_STARTS = ("-MF", "-MT", "-MQ", "-MJ", "-Wp,-M", "-o")  # with the value in the same word
_WITH_VALUE = {"-o", "-x", "-I", "-D", "-U", "-include", "-isystem", "-Xclang", "-mllvm", "-arch", "-target", "-iquote"}


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
        elif not argument.startswith("-") and Path(argument).suffix in SOURCES:
            sources.append(argument)
        if argument in _WITH_VALUE or argument in _DROPPED_WITH_VALUE:
            index += 1
    if not compiles or level not in SIZE_LEVELS or len(sources) != 1:
        return None
    return Compile(sources[0], output or f"{Path(sources[0]).stem}.o", list(arguments))


def find_clang(given: str | None) -> list[str]:
    """The user's clang as a command: given, in FOURFOLD_CLANG, or the newest on the path; raises Fallback."""
    asked = given or os.environ.get("FOURFOLD_CLANG")
    if asked:
        import shlex

        return shlex.split(asked)
    import shutil

    for name in NAMES:
        found = shutil.which(name)
        if found is not None:
            return [found]
    raise Fallback("there is no clang on the path; name one in FOURFOLD_CLANG")


def policy_folder(given: str | None) -> Path:
    """Given, in FOURFOLD_POLICY, or the policy that comes with the package."""
    asked = given or os.environ.get("FOURFOLD_POLICY")
    return Path(asked) if asked else Path(__file__).with_name("pretrained")


def advised(
    clang: Sequence[str], arguments: Sequence[str], host: Host, folder: Path, quiet: bool, where: str | None = None
) -> int:
    """Compile with every decision the policy's: clang's exit status; Fallback where it spoke no channel we know."""
    with Channel(folder, str(folder / "channel")) as channel:
        options = [part for option in channel.options for part in ("-mllvm", option)]
        process = subprocess.Popen(
            [*clang, *arguments, *options],
            cwd=where,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if quiet else None,
            stderr=subprocess.DEVNULL if quiet else None,
        )
        try:
            watch = os.pidfd_open(process.pid)
            try:
                host(channel, watch)
                return process.wait()
            finally:
                os.close(watch)
        except (ChannelBroken, OSError, ValueError, KeyError) as error:
            raise Fallback(f"the policy cannot be asked ({error})") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def compile_smaller(clang: Sequence[str], wanted: Compile, host: Host, folder: Path) -> int:
    """Stock and advised side by side; the smaller object is left. Stock's words and exit status are the answer."""
    target = Path(wanted.output)
    stock = subprocess.Popen([*clang, *wanted.arguments], stdin=subprocess.DEVNULL)
    try:
        smaller = folder / "object.o"
        trouble = None
        try:
            status = advised(clang, wanted.beside(str(smaller)), host, folder, quiet=True)
            if status != 0:
                trouble = f"the advised compile ended with {status}"
        except Fallback as error:
            trouble = str(error)
        code = stock.wait()
        if code == 0 and trouble is None and text_of(smaller) < text_of(target):
            import shutil

            # Into its folder first: the replacement is then one step, and the mode is clang's own.
            draft = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.copyfile(smaller, draft)
            shutil.copymode(target, draft)
            draft.replace(target)
        if code == 0 and trouble is not None:
            _note(f"plain clang for {wanted.source}: {trouble}")
        return code
    except ValueError:
        return stock.wait()  # an object of another form than ELF: it stays stock's
    finally:
        if stock.poll() is None:
            stock.kill()
            stock.wait()


def compile_fast(clang: Sequence[str], wanted: Compile, host: Host, folder: Path) -> int:
    """Once, as advised; plain clang again where that fails."""
    try:
        status = advised(clang, wanted.arguments, host, folder, quiet=False)
        if status == 0:
            return 0
        reason = f"the advised compile ended with {status}"
    except Fallback as error:
        reason = str(error)
    _note(f"plain clang for {wanted.source}: {reason}")
    return subprocess.call([*clang, *wanted.arguments])


def text_of(path: Path) -> int:
    """Bytes of machine code of an ELF object; raises ValueError for another file."""
    from services.inlining.sizes import text_total

    return text_total(path.read_bytes())


def _note(words: str) -> None:
    if os.environ.get("FOURFOLD_QUIET") != "1":
        print(f"fourfold: {words}", file=sys.stderr)


def main(given: Sequence[str]) -> int:
    """Exit status of the compile."""
    options = {"--clang": "", "--policy": ""}
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
    try:
        clang = find_clang(options["--clang"])
    except Fallback as error:
        print(f"fourfold: {error}", file=sys.stderr)
        return 127
    wanted = understand(arguments)
    if wanted is None:
        os.execvp(clang[0], [*clang, *arguments])
    policy = policy_folder(options["--policy"])
    try:
        folder = runtime_folder() / os.urandom(8).hex()
        folder.mkdir()
    except OSError as error:
        _note(f"plain clang for {wanted.source}: {error}")
        os.execvp(clang[0], [*clang, *arguments])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        compile_ = compile_fast if fast else compile_smaller
        return compile_(clang, wanted, lambda channel, ended: host_resident(policy, channel, ended), folder)
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
