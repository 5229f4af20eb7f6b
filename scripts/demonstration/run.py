"""The demonstration: every step is a command that a person would type, run against real processes.

Institutions are four `allmende node run` processes on loopback with their own homes and SQLite files; a fifth process
is the donor's agent. All of it lives in `.demo/` and ends with the demonstration.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from protocol.credits import format_credits, parse_credits
from scripts.demonstration.stage import DemoFailed, Stage
from scripts.loopback import find_free_port

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "scripts" / "demonstration" / "job" / "job.yaml"
PEOPLE = ("alice", "bob")
INSTITUTIONS = ("Aalto", "Bologna", "Coimbra", "Delft")
HOST, GRANTER, VICTIM = "Aalto", "Bologna", "Delft"
"""Who vouches for the donor, who opens the budget, whose node is killed."""

ALLOWANCE, PAYMENT, PAYMENT_MEANWHILE = "2000", "250.5", "10"


def main() -> int:
    """Run the demonstration; returns the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print only the summary, as JSON on standard output")
    parser.add_argument("--keep", action="store_true", help="keep .demo/run with all homes and logs")
    parser.add_argument("--started", type=float, default=time.time(), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with Stage(ROOT / ".demo", keep=arguments.keep) as stage:
        try:
            summary = play(stage)
        except KeyboardInterrupt:
            stage.say("interrupted; everything is stopped and removed")
            return 130
        except DemoFailed as failure:
            stage.say(f"the demonstration failed: {failure}; all homes and logs are in {stage.folder}")
            stage.keep = True
            return 1
    summary["seconds"] = round(time.time() - arguments.started, 1)
    problems = find_problems(summary)
    if arguments.json:
        print(json.dumps(summary, indent=2))
    else:
        print_summary(summary)
    for problem in problems:
        print(f"not as it should be: {problem}", file=sys.stderr)
    return 1 if problems else 0


def play(stage: Stage) -> dict[str, Any]:
    """All scenes in their order; returns the summary."""
    federation = found_federation(stage)
    open_donor(stage)
    program = open_program(stage)
    addresses = give_budgets(stage, program)
    payment = pay(stage, addresses)
    survive_a_crash(stage, addresses, federation)
    job = redeem(stage)
    return sum_up(stage, federation, payment, job)


def found_federation(stage: Stage) -> Path:
    """Each institution makes its keys; all sign one charter; four nodes start. Returns the founding document."""
    stage.title("Four institutions found a federation")
    cards, signatures = [], []
    for name in INSTITUTIONS:
        home, http = stage.home(name), f"127.0.0.1:{find_free_port()}"
        stage.urls[name] = f"http://{http}"
        p2p = f"/ip4/127.0.0.1/tcp/{find_free_port()}"
        stage.allmende("node", "init", "--home", home, "--name", f"University of {name}", "--p2p", p2p, "--http", http)
        cards.append(home / "founder.json")
    draft, federation = stage.path("charter.json"), stage.path("federation.json")
    stage.allmende("charter", "draft", *cards, "--name", "Demo Commons", "--out", draft)
    for name in INSTITUTIONS:
        signature = stage.path(f"{name}.signature")
        stage.allmende("charter", "sign", draft, "--home", stage.home(name), "--out", signature, "-y")
        signatures.append(signature)
    stage.allmende("charter", "found", draft, *signatures, "--out", federation)
    for name in INSTITUTIONS:
        start_node(stage, name, federation)
    for name in INSTITUTIONS:
        stage.wait_until(f"the node of {name} is connected to all others", partial(is_connected, stage, name))
    stage.say("  four nodes run and are connected to each other")
    return federation


def start_node(stage: Stage, name: str, federation: Path) -> None:
    """Start an institution's node in the background."""
    stage.start(name, "node", "run", "--home", stage.home(name), "--federation", federation)


def read_status(stage: Stage, name: str) -> Any:
    """What a node says of itself, or None while it does not answer."""
    try:
        return stage.allmende_json("node", "status", "--url", stage.urls[name], quiet=True)
    except DemoFailed:
        return None


def is_connected(stage: Stage, name: str) -> bool:
    """True when the node answers and sees all others."""
    status = read_status(stage, name)
    return status is not None and all(peer["is_connected"] for peer in status["peers"])


def open_donor(stage: Stage) -> None:
    """A donor sets up this machine and measures it; an institution vouches for it; the agent starts."""
    stage.title("A donor lends this machine")
    home = stage.home("donor")
    stage.take_from_cache("runtimes", home / "donor")
    setup = stage.allmende_json(
        "donor", "setup", "--home", home, "--node", stage.urls[HOST], "--machine", "demo machine",
        "--cores", "1", "--memory", "2", "--disk", "1", "--gpus", "0", "--tick", "2", "-y",
    )  # fmt: skip
    stage.allmende("donor", "selftest", "--home", home)
    stage.put_into_cache("runtimes", home / "donor")
    stage.allmende("member", "sponsor", setup["address"], "--epochs", "12", "--home", stage.home(HOST), "-y")
    stage.start("donor-agent", "donor", "start", "--home", home)


def open_program(stage: Stage) -> str:
    """An institution declares a compute budget for students; returns its address."""
    stage.title(f"{GRANTER} opens a compute budget")
    stage.allmende(
        "program", "create", "Students", "--purpose", "Coursework of enrolled students", "--allowance", ALLOWANCE,
        "--expiry-epochs", "2", "--transferable", "--home", stage.home(GRANTER), "-y",
    )  # fmt: skip
    programs = stage.allmende_json("program", "ls", "--home", stage.home(GRANTER), quiet=True)
    return str(programs["programs"][0]["id"])


def give_budgets(stage: Stage, program: str) -> dict[str, str]:
    """Two people make wallets and ask; the institution approves and grants. Returns their addresses."""
    stage.title("Alice and Bob get their budgets")
    addresses = {}
    for name in PEOPLE:
        home = stage.home(name)
        stage.allmende_json("wallet", "init", "--home", home, "--node", stage.urls[GRANTER], "--no-passphrase")
        addresses[name] = stage.allmende_json("wallet", "address", "--home", home)["address"]
        stage.allmende("budget", "request", program, "--home", home, "--text", name, "-y")
    stage.allmende("program", "approve", "--all", program, "--home", stage.home(GRANTER), "-y")
    stage.allmende("program", "grant", program, "--home", stage.home(GRANTER), "-y")
    for name in PEOPLE:
        stage.allmende("wallet", "balance", "--home", stage.home(name))
    return addresses


def pay(stage: Stage, addresses: dict[str, str]) -> Path:
    """Alice pays Bob; returns the file with the receipt of finality."""
    stage.title("Alice pays Bob")
    home, receipt = stage.home("alice"), stage.path("payment.receipt")
    sent = stage.allmende_json(
        "wallet", "send", addresses["bob"], PAYMENT, "--memo", "thanks for the notes", "--home", home, "-y"
    )
    stage.allmende("receipt", "get", sent["record"], "--home", home, "--out", receipt)
    return receipt


def survive_a_crash(stage: Stage, addresses: dict[str, str], federation: Path) -> None:
    """One node is killed; the others go on; it comes back and catches up."""
    stage.title(f"The node of {VICTIM} is killed; the others go on")
    stage.kill(VICTIM)
    stage.allmende("wallet", "send", addresses["alice"], PAYMENT_MEANWHILE, "--home", stage.home("bob"), "-y")
    start_node(stage, VICTIM, federation)
    stage.wait_until(f"{VICTIM} has caught up", partial(have_equal_states, stage))
    stage.say(f"  {VICTIM} is back and has what it missed")


def have_equal_states(stage: Stage) -> bool:
    """True when all nodes answer with one frontier and one state root."""
    statuses = [read_status(stage, name) for name in INSTITUTIONS]
    return None not in statuses and len({(s["frontier"], s["state_root"]) for s in statuses}) == 1


def redeem(stage: Stage) -> dict[str, Any]:
    """Bob plans and runs a job on the donated machine, and opens its result."""
    stage.title("Bob redeems credits for a computation on the donated machine")
    home, results = stage.home("bob"), stage.path("results")
    stage.wait_until("the donor's offer is public", partial(has_offer, stage))
    stage.allmende("offers", "--home", home)
    stage.allmende("job", "plan", JOB, "--home", home)
    run = stage.allmende_json("job", "run", JOB, "--home", home, "-y")
    stage.allmende("job", "fetch", run["job"], "--home", home, "--to", results)
    stage.allmende("job", "show", run["job"], "--home", home)
    stage.allmende("job", "receipt", run["job"], "--home", home, "--out", stage.path("job"))
    shown = stage.allmende_json("job", "show", run["job"], "--home", home, quiet=True)
    result = json.loads(next(results.rglob("result.json")).read_text())
    stage.say(f"    the result that Bob opened: {result}")
    return {"state": shown["state"], "charged_millicredits": shown["paid_millicredits"], "result": result}


def has_offer(stage: Stage) -> bool:
    """True when somebody lends a machine."""
    return bool(stage.allmende_json("offers", "--home", stage.home("bob"), quiet=True)["offers"])


def sum_up(stage: Stage, federation: Path, payment: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Compare the four replicas, check the receipt where there is no network, and read the balances."""
    stage.title("What is left to check")
    stage.wait_until("all replicas are equal", partial(have_equal_states, stage))
    statuses = [read_status(stage, name) for name in INSTITUTIONS]
    proof = stage.run_without_network("receipt", "verify", payment, "--charter", federation)
    balances = {
        name: stage.allmende_json("wallet", "balance", "--home", stage.home(name), quiet=True)["millicredits"]
        for name in PEOPLE
    }
    return {
        "members": len(statuses),
        "records": statuses[0]["records_final"],
        "state_roots_equal": have_equal_states(stage) and statuses[0]["records_final"] > 0,
        "state_root": statuses[0]["state_root"],
        "receipt_verified": len(proof["members"]) >= 3,
        "balances": balances,
        "job": job,
    }


def find_problems(summary: dict[str, Any]) -> list[str]:
    """What does not hold that should."""
    paid = parse_credits(PAYMENT) - parse_credits(PAYMENT_MEANWHILE)
    expected = {
        "alice": parse_credits(ALLOWANCE) - paid,
        "bob": parse_credits(ALLOWANCE) + paid - summary["job"]["charged_millicredits"],
    }
    checks = {
        "four members": summary["members"] == 4,
        "all replicas equal": summary["state_roots_equal"],
        "the receipt verifies without a network": summary["receipt_verified"],
        "the job is settled": summary["job"]["state"] == "SETTLED",
        "the job was charged": summary["job"]["charged_millicredits"] > 0,
        "the job computed something": summary["job"]["result"].get("accuracy", 0) > 0.9,
        f"balances are {expected}": summary["balances"] == expected,
    }
    return [what for what, holds in checks.items() if not holds]


def print_summary(summary: dict[str, Any]) -> None:
    """For people."""
    job = summary["job"]
    print("\nSummary")
    print(f"  {summary['members']} members hold {summary['records']} final records, replicas equal: "
          f"{summary['state_roots_equal']} (root {summary['state_root'][:16]}...)")  # fmt: skip
    print(f"  payment receipt verified without a network: {summary['receipt_verified']}")
    for name, amount in summary["balances"].items():
        print(f"  {name} holds {format_credits(amount)} credits")
    print(
        f"  job {job['state']}, charged {format_credits(job['charged_millicredits'])} credits, result {job['result']}"
    )
    print(f"  {summary['seconds']} s")


if __name__ == "__main__":
    sys.exit(main())
