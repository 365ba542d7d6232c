"""From a request for advice to its answer: reads the module, asks for advice, and makes the artefact."""

from __future__ import annotations

import base64
import binascii

from services.inlining.advice import Advice, Policy, advise, annotated, changed_functions
from services.inlining.engine import Level, Module, inspect_module
from services.inlining.replay import Decision, as_mapping, replay_options
from services.inlining.sandbox import Limits
from services.inlining.schemas import (
    AdviceRequest,
    AdviceResponse,
    ArtefactOut,
    CandidateSize,
    FunctionSize,
    SiteAdvice,
)
from services.inlining.source import to_bitcode
from shared.problems import InputError, PayloadTooLarge, Unprocessable

MOST_CALLS = 60_000  # of a module advised while its sender waits; SQLite has 20,000


class NotAModule(InputError):
    code = "inlining-not-a-module"
    title = "The content is not what the format says"
    advice = "Say the right `format`; bitcode goes as Base64."


class ModuleTooLarge(PayloadTooLarge):
    code = "inlining-module-too-large"
    title = "The module has more calls than are advised on at once"
    advice = "Send its files one by one, or search with `tune`."


class SpeedNotServed(Unprocessable):
    code = "inlining-speed-not-served"
    title = "The model served now does not advise on speed"
    advice = "Ask for the goal `size`."


def answer_of(asked: AdviceRequest, policy: Policy, tag: str, limits: Limits) -> AdviceResponse:
    """Everything that is answered; raises the problems of source, engine and sandbox."""
    if asked.goal == "speed":
        raise SpeedNotServed("Ask for the goal size; a version trained with a speed model advises on speed.")
    level: Level = "z"
    module = read_request(asked, level, limits)
    if module.calls > MOST_CALLS:
        raise ModuleTooLarge(f"The module has {module.calls} calls; at most {MOST_CALLS} are taken. Use a tune job.")
    advice = advise(module, policy, level=level, best_of=asked.best_of, seed=asked.seed, limits=limits)
    artefact = _artefact(asked, module, advice, level, limits)
    return AdviceResponse(
        model=tag,
        goal=asked.goal,
        winner=advice.winner,
        text_stock=advice.stock.text,
        text_advised=advice.advised.text,
        functions=[FunctionSize(name=name, stock=was, advised=now) for name, was, now in changed_functions(advice)],
        candidates=[CandidateSize(name=name, text=text) for name, text in advice.candidates],
        sites=_sites(advice),
        located=module.located,
        module_ir=None if module.located else module.code.decode("utf-8", "replace"),
        artefact=artefact,
        compiles=advice.compiles,
        cpu_seconds=round(advice.cpu_seconds, 3),
    )


def read_request(asked: AdviceRequest, level: Level, limits: Limits) -> Module:
    """The module that was sent."""
    if asked.format != "c" and (asked.files or asked.flags):
        raise InputError("Headers and flags are for C source.")
    match asked.format:
        case "c":
            data = to_bitcode(
                asked.content, name=asked.name, files=asked.files, flags=asked.flags, level=level, limits=limits
            )
        case "ir":
            data = asked.content.encode()
            if data[:2] == b"BC":
                raise NotAModule("This is bitcode; send it as Base64 with the format bitcode.")
        case "bitcode":
            try:
                data = base64.b64decode(asked.content, validate=True)
            except (binascii.Error, ValueError):
                raise NotAModule("The bitcode is not valid Base64.") from None
            if data[:4] not in (b"BC\xc0\xde", b"\xde\xc0\x17\x0b"):
                raise NotAModule("This is not bitcode: it does not begin with its mark (42 43 C0 DE).")
    return inspect_module(data, limits=limits)


def _sites(advice: Advice) -> list[SiteAdvice]:
    stock = as_mapping(advice.stock.decisions)
    last: dict[tuple[str, str], Decision] = {}
    for decision in advice.decisions:
        last[decision.site.callee, decision.site.place] = decision
    mapping = advice.mapping
    rows: list[SiteAdvice] = []
    for decision in last.values():
        features, probability = advice.seen.get(decision.site, (None, None))
        inline = mapping[decision.site]
        confidence = None if probability is None else probability if inline else 1 - probability
        rows.append(
            SiteAdvice(
                caller=decision.caller,
                callee=decision.site.callee,
                place=decision.site.place,
                file=decision.file,
                line=decision.line,
                column=decision.column,
                inline=inline,
                stock=stock.get(decision.site),
                confidence=None if confidence is None else round(confidence, 4),
                features=features,
            )
        )
    return rows


def _artefact(asked: AdviceRequest, module: Module, advice: Advice, level: Level, limits: Limits) -> ArtefactOut:
    match asked.artefact:
        case "replay":
            options = [part for option in replay_options("FILE") for part in ("-mllvm", option)]
            return ArtefactOut(
                kind="replay",
                media_type="text/plain",
                encoding="utf-8",
                content=advice.replay,
                text=advice.advised.text,
                # The places are those of line tables, which do not change the code.
                options=["-Oz", "-gline-tables-only", *options] if advice.replay else ["-Oz"],
            )
        case "annotated-ir":
            text, marks, compiled = annotated(module, advice, level=level, limits=limits)
            return ArtefactOut(
                kind="annotated-ir",
                media_type="text/x-llvm",
                encoding="utf-8",
                content=text,
                text=compiled.text,
                options=["-Oz", "-x", "ir", "FILE"],
                calls_marked=marks,
            )
        case "object":
            return ArtefactOut(
                kind="object",
                media_type="application/x-object",
                encoding="base64",
                content=base64.b64encode(advice.advised.object).decode(),
                text=advice.advised.text,
                options=[],
            )
