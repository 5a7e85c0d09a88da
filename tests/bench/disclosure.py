# ruff: noqa: E402, T201
"""How much of the figures a release shows, beside plain primary and margin masking, and what the latter gives away.

python tests/bench/disclosure.py [NUMBER OF RANDOM COHORTS]
"""

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "property")]

import attacker
import cohorts
import plain

from crmo_fhir import pipeline
from crmo_fhir.errors import PrivacyError
from crmo_fhir.export.disclosure import count_shown, filter_results
from crmo_fhir.export.results import read_results
from crmo_fhir.metrics.statistics import wilson
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.study import Disclosure


def results_of(seed: int | None, folder: Path) -> Path:
    """results.csv of the demonstration or of a random cohort."""
    if seed is None:
        pipeline.demo(folder / "study")
    else:
        cohort = cohorts.make(seed)
        cohorts.write(cohort, folder / "records")
        window = Parameters(since=cohort.since, until=cohort.until)
        pipeline.extract(str(folder / "records"), folder / "study", window)
        pipeline.measure(folder / "study")
    return folder / "study" / "results.csv"


def main(number: int) -> None:
    """Print a line for each threshold."""
    with tempfile.TemporaryDirectory() as temporary:
        paths = {}
        for seed in (None, *range(number)):
            (folder := Path(temporary) / str(seed)).mkdir()
            paths[seed] = results_of(seed, folder)
        print("cohorts          threshold  counts   shown  refused  seconds   plain: shown  given away  cohorts broken")
        for label, seeds in (("demonstration", [None]), (f"{number} random", list(range(number)))):
            for threshold in (3, 5, 7, 10):
                counts = shown = refused = plainly = given = broken = 0
                seconds = 0.0
                for seed in seeds:
                    truth = attacker.truth_of(paths[seed])
                    results = read_results(paths[seed].read_text(encoding="utf-8"))
                    begun = time.process_time()
                    try:
                        ours, _ = count_shown(filter_results(results, Disclosure(threshold), wilson))
                    except PrivacyError:
                        ours, refused = 0, refused + 1
                    seconds += time.process_time() - begun
                    hidden = plain.hide_small_and_margins(truth, threshold)
                    found = attacker.Attack(plain.said_of(truth, hidden)).revealed([truth], threshold)
                    counts, shown, plainly = counts + len(truth), shown + ours, plainly + len(truth) - len(hidden)
                    given, broken = given + len(found), broken + bool(found)
                print(
                    f"{label:<16}{threshold:>10}{counts:>8}{shown / max(counts, 1):>8.1%}{refused:>9}"
                    f"{seconds / max(len(seeds), 1):>9.1f}{plainly / max(counts, 1):>15.1%}{given:>12}{broken:>16}",
                    flush=True,
                )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else int(os.environ.get("CRMO_FHIR_RELEASES", "20")))
