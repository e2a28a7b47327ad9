"""`twigserve`: the commands. Each resolves its settings once and hands them down.

Invariant: importing this package imports neither torch nor FastAPI; each command imports what it needs.
Must not know: how anything is done. Errors of settings and checkpoints end a command with one line, exit 2.
"""

from __future__ import annotations

import typer

from service.cli import describe, doctor, evaluating, keys, local, models, probes, serving, training

HELP = {"help_option_names": ["-h", "--help"]}
USE, PRODUCTION, MODELS = "To use", "In production", "Models"

app = typer.Typer(
    name="twigserve",
    help="Descriptions of pictures by TwigVLM, served over HTTP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP,
    epilog="twigserve COMMAND --help tells more. Completion: twigserve --install-completion.",
)
app.command(rich_help_panel=USE)(serving.serve)
app.command(rich_help_panel=USE, epilog=describe.EPILOG)(describe.describe)
app.command(rich_help_panel=USE)(doctor.doctor)
app.command(rich_help_panel=PRODUCTION)(serving.gateway)
app.command(rich_help_panel=PRODUCTION)(serving.worker)
app.command(rich_help_panel=PRODUCTION)(models.fetch)
app.command(rich_help_panel=MODELS)(local.verify)
app.command(rich_help_panel=MODELS)(local.bench)
app.command(rich_help_panel=MODELS)(evaluating.evaluate)

train = typer.Typer(
    no_args_is_help=True, help="Makes the embedded model, base and twig, or a twig for your base. Resumable."
)
train.command("base")(training.train_base)
train.command("twig")(training.train_twig)
app.add_typer(train, name="train", rich_help_panel=MODELS)

api_keys = typer.Typer(no_args_is_help=True, help="API keys: a file of hashes that gateways read.")
api_keys.command("add")(keys.add)
api_keys.command("remove")(keys.remove)
api_keys.command("list")(keys.list_keys)
app.add_typer(api_keys, name="keys", rich_help_panel=PRODUCTION)

check = typer.Typer(no_args_is_help=True, help="Probes for orchestrators: exit 0 if well, 1 if not.")
check.command("gateway")(probes.check_gateway)
check.command("worker")(probes.check_worker)
app.add_typer(check, name="check", rich_help_panel=PRODUCTION)
