"""The command line: options in, one call of the library, text or JSON out. No logic lives here."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from lstmconvert.options import ReadOptions, WriteOptions

_SUFFIX = {"torch": ".safetensors", "onnx": ".onnx", "keras": ".keras"}
_FRAMEWORK = {"torch": "pytorch", "onnx": "onnx", "keras": "keras"}


def _narrow(prog: str) -> argparse.HelpFormatter:
    """The formatter that looks an option over when it is added: without asking how wide the terminal is."""
    return argparse.HelpFormatter(prog, width=80)


class _Parser(argparse.ArgumentParser):
    """Usage errors take the same way as all others, so that ``--json`` holds for them too."""

    def __init__(self, **described: Any) -> None:
        super().__init__(formatter_class=_narrow, **described)

    def format_help(self) -> str:
        self.formatter_class = argparse.HelpFormatter
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        from lstmconvert.errors import Usage

        raise Usage(message, remedy=f"See {self.prog} --help.")


class _Passed(_Parser):
    """Takes the description of a command that was not given, and forgets it."""

    def add_argument(self, *_names: Any, **_described: Any) -> argparse.Action:
        return argparse.Action([], "")

    def add_argument_group(self, *_names: Any, **_described: Any) -> Any:
        return self


def _common() -> _Parser:
    common = _Parser(add_help=False)
    group = common.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    group.add_argument("--verbose", action="store_true", help="print more")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return common


def _source_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the source does not say itself")
    group.add_argument("--layer", metavar="NAME", help="only this recurrent layer")
    group.add_argument("--mapping", metavar="FILE", type=Path, help="mapping file for home-made names")
    group.add_argument(
        "--arch", metavar="FILE.toml", type=Path, help="how the modules of a state_dict follow each other"
    )
    group.add_argument(
        "--keras-version", metavar="N", help="Keras release that trained the model, such as 2.2"
    )
    group.add_argument(
        "--recurrent-activation", metavar="NAME", help="activation of the gates: sigmoid or hard_sigmoid"
    )
    group.add_argument("--activation", metavar="NAME", help="activation of a simple RNN (tanh, relu) or cell")
    group.add_argument(
        "--reset-after", action=argparse.BooleanOptionalAction, default=None, help="which GRU equations"
    )
    group.add_argument(
        "--forget-bias",
        metavar="X",
        type=float,
        help="added to an LSTM's forget gate at run time (TF 1: 1.0)",
    )
    group.add_argument("--cell-clip", metavar="X", type=float, help="bound on the cell state; inf for none")
    group.add_argument("--projection-clip", metavar="X", type=float, help="bound on the projection (TF 1)")


def _conversion_options(parser: argparse.ArgumentParser) -> None:
    _source_options(parser)
    group = parser.add_argument_group("target")
    group.add_argument("--opset", metavar="N", type=int, help="ONNX opset version")
    group.add_argument(
        "--states", action="store_true", help="make initial and final states inputs and outputs"
    )
    group.add_argument("--dtype", metavar="NAME", help="dtype of the written weights (float32, float16, ...)")
    group.add_argument("--weights-only", action="store_true", help="leave out the generated module")
    group.add_argument("--overwrite", action="store_true", help="replace an existing target")
    group.add_argument(
        "--with-optimizer",
        action="store_true",
        help="take the optimizer's state along (Adam, RMSprop, SGD; Keras, PyTorch, TensorFlow 1)",
    )
    group = parser.add_argument_group("proof")
    group.add_argument("--tolerance", metavar="X", type=float, help="largest accepted absolute difference")
    group.add_argument(
        "--verify",
        choices=("sampled", "full"),
        default="sampled",
        help="how thoroughly to prove a large model; sampled, the default, is quick",
    )
    group.add_argument("--no-verify", action="store_true", help="leave out the proof")
    group.add_argument(
        "--report",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="write the proof as JSON or, to FILE.html, as a page; may be given for both",
    )


def parser(only: str = "") -> argparse.ArgumentParser:
    """The whole command line; where ``only`` is a command, that one: to describe each takes time."""
    common = _common()
    top = _Parser(
        prog="lstmconvert",
        description="Convert LSTM, GRU and RNN models between frameworks, and prove the result.",
        epilog="Exit status: 0 done and proved, 1 the proof failed, 2 wrong usage, "
        "3 the target cannot express the source, 4 the source cannot be read.",
    )
    top.add_argument("--version", action="store_true", help="print the release")
    commands = top.add_subparsers(prog=top.prog, dest="command", metavar="COMMAND", parser_class=_Parser)

    passed = _Passed(add_help=False)

    def command(name: str, summary: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        if only not in ("", name):
            return passed
        sub = commands.add_parser(name, help=summary, description=summary + ".", parents=[common])
        sub.set_defaults(run=run)
        return sub

    for source in ("keras", "torch", "onnx"):
        for target in ("torch", "onnx", "keras"):
            if source != target:
                sub = command(f"{source}2{target}", f"{source} file to {target}", _convert)
                sub.add_argument("source", metavar="SRC", type=Path)
                sub.add_argument(
                    "-o", "--output", metavar="OUT", type=Path, help=f"default: SRC with {_SUFFIX[target]}"
                )
                sub.set_defaults(source_framework=_FRAMEWORK[source], target_framework=_FRAMEWORK[target])
                _conversion_options(sub)
    sub = command("convert", "any file to any framework", _convert)
    sub.add_argument("source", metavar="SRC", type=Path)
    sub.add_argument("-o", "--output", metavar="OUT", type=Path, required=True)
    sub.add_argument("--from", dest="source_framework", metavar="F", help="framework of SRC")
    sub.add_argument("--to", dest="target_framework", metavar="F", help="framework of OUT")
    _conversion_options(sub)

    sub = command("inspect", "the recurrent layers of a file, and the rest of the model", _inspect)
    sub.add_argument("source", metavar="SRC", type=Path)
    sub.add_argument("--from", dest="source_framework", metavar="F", help="framework of SRC")
    _source_options(sub)

    sub = command("trace", "every gate at every step", _trace)
    sub.add_argument("source", metavar="SRC", type=Path)
    sub.add_argument("--input", metavar="X.npy", type=Path, required=True, help="input of the model or layer")
    sub.add_argument("--from", dest="source_framework", metavar="F", help="framework of SRC")
    _source_options(sub)

    sub = command("verify", "prove two files equal, or check the proof that a written file carries", _verify)
    sub.add_argument("source", metavar="SRC", type=Path)
    sub.add_argument("target", metavar="OUT", type=Path, nargs="?", help="without it: check SRC's own proof")
    sub.add_argument(
        "--runtime",
        action="store_true",
        help="also run each file in the runtime it belongs to (runs the generated torch module)",
    )
    sub.add_argument("--input", metavar="X.npz", type=Path, help="inputs of the whole models")
    sub.add_argument("--tolerance", metavar="X", type=float, help="largest accepted absolute difference")
    sub.add_argument(
        "--report",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="write the proof as JSON or, to FILE.html, as a page; may be given for both",
    )
    sub.add_argument("--from", dest="source_framework", metavar="F", help="framework of SRC")
    _source_options(sub)

    sub = command("check", "what goes wrong with such files in practice; exit status 1 on findings", _check)
    sub.add_argument("source", metavar="FILE", type=Path)
    sub.add_argument("--from", dest="source_framework", metavar="F", help="framework of FILE")
    _source_options(sub)

    sub = command("identify", "say which layout and equations arrays have", _identify)
    sub.add_argument("source", metavar="WEIGHTS", type=Path)
    sub.add_argument(
        "--input", metavar="X.npy", type=Path, help="a sample's input; in an .npz, initial states behind it"
    )
    sub.add_argument(
        "--output", metavar="Y.npy", type=Path, help="its output: the sequence or its last step (and states)"
    )
    sub.add_argument(
        "--write-mapping", metavar="FILE", type=Path, help="write a mapping file that makes it convertible"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace an existing mapping file")

    sub = command("conformance", "run a runtime on several hundred recurrent cases", _conformance)
    sub.add_argument(
        "--runtime",
        metavar="NAME",
        action="append",
        default=[],
        help="onnxruntime, onnx.reference, openvino, torch, keras or tf_keras; more than once for several",
    )
    sub.add_argument("--export", metavar="DIR", type=Path, help="write the cases as ONNX node tests and .npz")

    command("frameworks", "what each framework here can read, write and express", _frameworks)
    return top if commands.choices else parser()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit status; errors go to stderr, without a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # To look for cycles at every 700 new objects takes a twentieth of a small conversion, and finds none.
    gc.set_threshold(50_000)
    from lstmconvert.errors import ConversionError

    try:
        namespace = parser(given[0] if given else "").parse_args(given)
        if namespace.version:
            from lstmconvert import __version__

            print(f"lstmconvert {__version__}")
            return 0
        if namespace.command is None:
            parser().print_help()
            return 2
        status: int = namespace.run(namespace)
        return status
    except ConversionError as error:
        if "--debug" in given:
            raise
        _print_error(type(error).__name__, str(error), error.exit_status, as_json="--json" in given)
        return error.exit_status
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        _print_error("Interrupted", "interrupted; nothing was written", 130, as_json="--json" in given)
        return 130
    except MemoryError:
        _print_error("MemoryError", "out of memory; nothing was written", 4, as_json="--json" in given)
        return 4
    except OSError as error:
        if "--debug" in given:
            raise
        place = f"{error.filename}: " if error.filename else ""
        _print_error("OSError", f"{place}{error.strerror or error}", 4, as_json="--json" in given)
        return 4
    except Exception as error:
        # The last net: whatever went wrong, a person gets a sentence and no half-written file.
        if "--debug" in given:
            raise
        message = (
            f"internal error: {type(error).__name__}: {error}\n"
            "  This is a fault of lstmconvert; nothing was written. Run again with --debug and report it."
        )
        _print_error("InternalError", message, 4, as_json="--json" in given)
        return 4


def _print_error(name: str, message: str, status: int, *, as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps({"error": name, "message": message, "exit_status": status}))
    else:
        print(f"lstmconvert: {message}", file=sys.stderr)


def _read_options(arguments: argparse.Namespace) -> ReadOptions:
    from lstmconvert.options import ReadOptions

    return ReadOptions(
        framework=arguments.source_framework,
        mapping=arguments.mapping,
        keras_version=arguments.keras_version,
        recurrent_activation=arguments.recurrent_activation,
        activation=arguments.activation,
        reset_after=arguments.reset_after,
        layer=arguments.layer,
        forget_bias=arguments.forget_bias,
        cell_clip=arguments.cell_clip,
        projection_clip=arguments.projection_clip,
        architecture=arguments.arch,
    )


def _write_options(arguments: argparse.Namespace) -> WriteOptions:
    from lstmconvert.options import WriteOptions

    return WriteOptions(
        opset=arguments.opset,
        states=arguments.states,
        dtype=arguments.dtype,
        weights_only=arguments.weights_only,
    )


def _show(arguments: argparse.Namespace, value: Any, text: Callable[[], str]) -> None:
    if arguments.json:
        import json

        print(json.dumps(value))
    elif not arguments.quiet:
        print(text())


def _save_report(arguments: argparse.Namespace, value: Any) -> None:
    from lstmconvert import atomic, page

    with atomic.replacing(*arguments.report, overwrite=True) as places:
        for path, place in zip(arguments.report, places, strict=True):
            place.write_text(page.of_suffix(path, value), encoding="utf-8")


def _convert(arguments: argparse.Namespace) -> int:
    from lstmconvert import conversion

    results = conversion.run(
        arguments.source,
        arguments.output,
        _read_options(arguments),
        arguments.target_framework,
        _write_options(arguments),
        tolerance=arguments.tolerance,
        proof=not arguments.no_verify,
        full=arguments.verify == "full",
        overwrite=arguments.overwrite,
        with_optimizer=arguments.with_optimizer,
    )
    # The report has the digests of both files, which take their time on large ones.
    value = results.report if arguments.json or arguments.report else {}
    if arguments.report:
        from lstmconvert import gate_maps, opening

        told = _read_options(arguments)
        opened = opening.open_source(arguments.source, told)
        again, told_again = conversion.reopened(results)
        _save_report(
            arguments, {**value, "gate_maps": gate_maps.gate_maps(opened, again, (told, told_again))}
        )

    def in_words() -> str:
        from lstmconvert import text

        return text.conversion(results, verbose=arguments.verbose)

    _show(arguments, value, in_words)
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from lstmconvert import opening, report, text

    value = report.inspection(opening.open_source(arguments.source, _read_options(arguments)))
    _show(arguments, value, lambda: text.inspection(value, verbose=arguments.verbose))
    return 0


def _trace(arguments: argparse.Namespace) -> int:
    from lstmconvert import opening, text, tracing

    source = opening.open_source(arguments.source, _read_options(arguments))
    value = tracing.trace_file(source, tracing.load_array(arguments.input), arguments.layer)
    _show(arguments, value, lambda: text.trace(value))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from lstmconvert import report, text, tracing, verification
    from lstmconvert.errors import Usage

    if arguments.target is None:
        if arguments.input is not None or arguments.runtime or arguments.report:
            raise Usage("one file alone takes no --input, --runtime or --report", remedy="Name both files.")
        carried = verification.carried_proof(arguments.source, _read_options(arguments))
        _show(arguments, carried, lambda: text.carried(carried))
        return 0 if carried["verdict"] == "intact" else 1
    inputs = None if arguments.input is None else tracing.load_arrays(arguments.input)
    proof = verification.verify(
        arguments.source,
        arguments.target,
        options=_read_options(arguments),
        tolerance=arguments.tolerance,
        inputs=inputs,
        runtime=arguments.runtime,
    )
    value = report.verification(proof, arguments.source, arguments.target)
    if arguments.report:
        from lstmconvert import gate_maps

        sides, told = verification.open_both(arguments.source, arguments.target, _read_options(arguments))
        _save_report(arguments, {**value, "gate_maps": gate_maps.gate_maps(*sides, told)})
    _show(arguments, value, lambda: text.proof(proof, verbose=arguments.verbose))
    return 0 if proof.proved else 1


def _check(arguments: argparse.Namespace) -> int:
    from lstmconvert import linting, text

    found = [finding.as_json() for finding in linting.check(arguments.source, _read_options(arguments))]
    value = {"file": str(arguments.source), "findings": found}
    _show(arguments, value, lambda: text.findings(value))
    return 1 if found else 0


def _identify(arguments: argparse.Namespace) -> int:
    from lstmconvert import identification, text, tracing

    inputs, outputs = (
        None if path is None else tuple(tracing.load_arrays(path))
        for path in (arguments.input, arguments.output)
    )
    found = identification.identify(
        arguments.source,
        inputs,
        outputs,
        write_mapping=arguments.write_mapping,
        overwrite=arguments.overwrite,
    )
    value = found.as_json()
    _show(
        arguments, value, lambda: text.identification(value, str(arguments.source), verbose=arguments.verbose)
    )
    return 0 if inputs is None or found.fits else 1


def _conformance(arguments: argparse.Namespace) -> int:
    from lstmconvert import conformance, text
    from lstmconvert.errors import Usage

    if not arguments.runtime and arguments.export is None:
        raise Usage("there is nothing to do", remedy="Name a --runtime, or a folder with --export.")
    value: dict[str, Any] = {"cases": len(conformance.cases()), "runtimes": {}}
    if arguments.export is not None:
        from lstmconvert.conformance.export import export

        value["exported"] = {"folder": str(arguments.export), "cases": export(arguments.export)}
    for name in arguments.runtime:
        value["runtimes"][name] = conformance.summary(conformance.run(name))
    _show(arguments, value, lambda: text.conformance(value, verbose=arguments.verbose))
    return 0


def _frameworks(arguments: argparse.Namespace) -> int:
    from lstmconvert import capabilities, text

    value = capabilities.table()
    _show(arguments, value, lambda: text.frameworks(value))
    return 0


if __name__ == "__main__":
    sys.exit(main())
