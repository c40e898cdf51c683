"""`stsync pki`: keys and certificates for clusters that have no certification authority of their own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from common.commands.options import ConfigOption
from common.trust import pki

ClusterOption = Annotated[str, typer.Option("--cluster", help="Name of the cluster, as in [cluster] name.")]
NodeOption = Annotated[str, typer.Option("--node", help="Name of the node, as in the roster [[cluster.nodes]].")]
CaOption = Annotated[Path, typer.Option("--ca", help="Directory with ca.pem and ca.key, as `pki init` made it.")]
OutOption = Annotated[Path, typer.Option("--out", help="Directory to write to; made if missing. Nothing is overwritten.")]


def register(app: typer.Typer) -> None:
    """Add `stsync pki` with its commands."""
    group = typer.Typer(
        help="Keys and certificates for a cluster without a certification authority of its own.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("init")(init)
    group.command("issue")(issue)
    app.add_typer(group, name="pki")


def init(cluster: ClusterOption, out: OutOption, config: ConfigOption = None) -> None:
    """Create a cluster's certification authority and the cluster key pair."""
    del config  # taken as by every command; there is none yet
    pki.init_cluster(cluster, out)
    typer.echo(f"Certification authority and cluster key pair of cluster {cluster}:")
    _tell(
        (
            (
                out / pki.CA_CERTIFICATE,
                "every node, [trust] authorities: says who may issue node certificates",
            ),
            (out / pki.CA_KEY, "no node: keep it in a safe place; `stsync pki issue --ca` needs it"),
            (
                out / pki.CLUSTER_CERTIFICATE,
                "every node, [trust] cluster_certificate: messages are sealed to it",
            ),
            (
                out / pki.CLUSTER_KEY,
                "every node, [trust] cluster_key: opens sealed messages; only the service may read it",
            ),
        )
    )
    typer.echo(f"Next, for each node: stsync pki issue --ca {out} --node NAME --out DIR")


def issue(ca: CaOption, node: NodeOption, out: OutOption, config: ConfigOption = None) -> None:
    """Create a node's private key and certificate."""
    del config  # as above
    pki.issue_node(ca, node, out)
    typer.echo(f"Key and certificate of node {node}, valid for at most {pki.NODE_DAYS} days:")
    _tell(
        (
            (out / f"{node}.pem", f"node {node} only, [trust] certificate: who it is"),
            (
                out / f"{node}.key",
                f"node {node} only, [trust] key: signs its messages; only the service may read it",
            ),
        )
    )


def _tell(files: Sequence[tuple[Path, str]]) -> None:
    width = max(len(str(path)) for path, _ in files)
    for path, purpose in files:
        typer.echo(f"  {path!s:<{width}}  {purpose}")
