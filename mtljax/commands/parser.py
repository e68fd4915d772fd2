"""The arguments of the commands; nothing heavy is imported here, so that --help is quick."""

import argparse

from mtljax.commands.output import add_figure


def parser() -> argparse.ArgumentParser:
    """The words each command takes, and in `run` the module and function that carry it out."""
    root = argparse.ArgumentParser(
        prog="mtljax",
        description="Train multi-task networks in JAX and compare what trains them.",
        epilog="example: mtljax ablate configs/digits.py",
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: str, help_text: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help_text,
            description=help_text[0].upper() + help_text[1:] + ".",
            epilog=f"example: {example}",
            allow_abbrev=False,
        )
        sub.set_defaults(run=run)
        return sub

    train = command(
        "train",
        "train:train",
        "train one network; --path.to.field=value overrides a field of the config",
        "mtljax train configs/digits.py --method.name=cagrad --optimizer.learning_rate=3e-4",
    )
    train.add_argument("config", metavar="CONFIG", help="Python file with get_config()")
    train.add_argument(
        "--workdir", help="directory of log, config and checkpoints (default: runs/NAME-METHOD-TASKS-seedN)"
    )
    train.add_argument("--resume", action="store_true", help="continue from the last checkpoint, bit for bit")
    train.add_argument(
        "--distributed",
        nargs="?",
        const="",
        metavar="HOST:PORT",
        help="train with other processes, each started with the same command: alone on a TPU pod or under SLURM, "
        "elsewhere with the address of the first process and the next two options",
    )
    train.add_argument("--num_processes", type=int, metavar="N", help="how many processes train together")
    train.add_argument("--process_id", type=int, metavar="I", help="which of them this is, from 0")
    train.set_defaults(takes_overrides=True)

    evaluate = command(
        "evaluate",
        "train:evaluate",
        "print the metrics of a trained run",
        "mtljax evaluate runs/digits-ew-seed0 --split test",
    )
    evaluate.add_argument("directory", metavar="DIR", help="workdir of a run")
    evaluate.add_argument("--split", default="test", choices=("train", "validation", "test"), help="default: test")

    ablate = command(
        "ablate",
        "ablate:ablate",
        "run a study, a grid of runs with single-task baselines and tuned scalarization; finished cells are kept",
        "mtljax ablate configs/digits.py --base.epochs=4 --workdir=runs/digits-4-epochs",
    )
    ablate.add_argument("config", metavar="CONFIG", help="Python file with get_config() returning a StudyConfig")
    ablate.add_argument("--workdir", help="directory of the study (default: runs/NAME)")
    ablate.add_argument(
        "--jobs", type=int, metavar="N", help="cells at once, where the strategy runs several (default: as many as fit)"
    )
    ablate.add_argument(
        "--strategy",
        metavar="S",
        help="how cells run: sequential (default on a CPU), vmap (default on accelerators), processes or ray",
    )
    ablate.add_argument(
        "--dry-run", action="store_true", help="list cells and programs, estimate the time, run nothing"
    )
    ablate.add_argument("--yes", action="store_true", help="run more than 10,000 cells")
    ablate.add_argument("--retry-failed", action="store_true", help="run the cells again that failed")
    ablate.set_defaults(takes_overrides=True)

    report = command(
        "report", "ablate:report", "rebuild the report of a study from its records", "mtljax report runs/digits"
    )
    report.add_argument("directory", metavar="DIR", help="directory of a study")

    _add_analyses(command("analyze", "", "see what optimizers and methods do", "mtljax analyze toy"))

    plan = command(
        "plan",
        "plan:plan",
        "what a run or study would cost on a TPU or GPU that is not here, by its own compiler: memory, estimated time, "
        "traffic, engines side by side; --path.to.field=value overrides a field of the config",
        "mtljax plan configs/digits.py --target v5e:4x4 --modes all",
    )
    plan.add_argument("config", metavar="CONFIG", help="Python file with get_config()")
    plan.add_argument(
        "--target",
        required=True,
        metavar="T",
        help="the machine: v4, v5e, v5p, v6e or tpu7x with the sides of its slice (v5e:4x4, v5p:2x2x1); a100, h100, "
        "h200 or b200, several as h100x8; cpu",
    )
    plan.add_argument("--batch_size", type=int, metavar="N", help="examples a step, over all devices")
    plan.add_argument(
        "--modes",
        default="auto",
        metavar="A,B",
        help="engines to compare with the summed loss, of auto, jacrev, loop, two_pass and features, or all (auto)",
    )
    plan.add_argument(
        "--largest_batch",
        action="store_true",
        help="look for the largest batch that fits: up to 6 further compilations",
    )
    plan.add_argument("--blocks", metavar="M,M", help="of a study: cells in one program, by numbers such as 1,8,32,128")
    plan.add_argument("--json", metavar="FILE", help="also write everything as JSON")
    plan.set_defaults(takes_overrides=True)

    listing = command(
        "methods", "methods:methods", "list the multi-task methods, or explain one", "mtljax methods cagrad"
    )
    listing.add_argument("name", nargs="?", metavar="NAME", help="the method to explain")
    listing.add_argument("--markdown", action="store_true", help="print the tables of docs/methods.md")
    return root


def _add_analyses(analyze: argparse.ArgumentParser) -> None:
    kinds = analyze.add_subparsers(dest="what", required=True, metavar="WHAT")

    def kind(name: str, help_text: str, example: str) -> argparse.ArgumentParser:
        text, last = help_text[0].upper() + help_text[1:] + ".", f"example: mtljax analyze {name} {example}"
        sub = kinds.add_parser(name, help=help_text, description=text, epilog=last, allow_abbrev=False)
        sub.set_defaults(run=f"analyze:{name.replace('-', '_')}")
        add_figure(sub)
        return sub

    toy = kind(
        "toy",
        "steps to the minimum of CAGrad's function of two parameters; --field=value overrides a field of the config",
        "--iterations=10000 --methods=all --figure toy.png",
    )
    toy.add_argument("config", nargs="?", metavar="CONFIG", help="file with get_config() returning a ToyConfig")
    toy.set_defaults(takes_overrides=True)
    optimizers = kind(
        "optimizers",
        "which of two optimizers wins a study, whatever the method: Pareto counts, best Δm, claims of arXiv:2311.04698",
        "runs/optimizer_study_cpu --figure settings.png",
    )
    optimizers.add_argument("directory", metavar="DIR", help="directory of a study")
    optimizers.add_argument(
        "--pair",
        nargs=2,
        metavar="OPTIMIZER",
        help="as the study names them (default: those that begin with adam and sgd)",
    )
    scale = kind(
        "scale-invariance",
        "which optimizers see the scale of the losses, on a small network",
        "--scales 10,0.01 --figure scales.png",
    )
    scale.add_argument("--scales", default="10,0.1", metavar="A,B", help="of the two losses (default: 10,0.1)")
    scale.add_argument("--steps", type=int, metavar="N", help="of each run (default: 800, that is 100 epochs)")
    scale.add_argument("--eps", type=float, default=1e-16, help="Adam's ε (default: 1e-16)")
    conflicts = kind(
        "conflicts",
        "whether gradients conflict more between tasks than between examples, in every epoch of runs trained with "
        "--probe_every=30; --field=value overrides a field of the studies given as configs",
        "configs/digits.py --methods=\"({'name': 'ew'},)\" --baselines=false --figure conflicts.png",
    )
    conflicts.add_argument(
        "runs",
        nargs="+",
        metavar="RUN_OR_CONFIG",
        help="directory of mtljax train or ablate, or a file with get_config(), which is trained into "
        "runs/NAME-conflicts (a single run with 3 seeds)",
    )
    conflicts.set_defaults(run="conflicts:conflicts", takes_overrides=True)
    sheet = kind(
        "corruptions",
        "how far the 15 corruptions at 5 severities move the images of a data set; --figure draws all 75",
        "--data digits --figure sheet.png",
    )
    sheet.add_argument("--data", default="digits", metavar="NAME", help="the data set (default: digits)")
    sheet.add_argument("--image", type=int, default=0, metavar="I", help="the test image to draw (default: 0)")
    sheet.add_argument("--seed", type=int, default=0, metavar="N", help="of what is random (default: 0)")
    robust = kind(
        "robustness",
        "how much more multi-task runs lose to corruptions than single-task runs of the same seeds; results are kept",
        "runs/digits-* --figure robustness.png",
    )
    robust.add_argument("runs", nargs="+", metavar="RUN", help="directory of mtljax train")
    robust.add_argument("--num_train", type=int, metavar="N", help="examples the heads are fine-tuned on (6000)")
    robust.add_argument("--num_test", type=int, metavar="N", help="test examples (2000)")
    robust.add_argument("--epochs", type=int, metavar="N", help="of the fine-tuning (5)")
    robust.add_argument("--batch_size", type=int, metavar="N", help="of the fine-tuning (128)")
    robust.add_argument("--learning_rate", type=float, metavar="X", help="of the fine-tuning's Adam (0.001)")
    robust.add_argument("--seed", type=int, metavar="N", help="of the corruptions (0)")
    robust.add_argument("--force", action="store_true", help="measure again what is kept")
