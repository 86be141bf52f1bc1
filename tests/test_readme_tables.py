"""README.md shows the committed benchmark results, to the letter."""

import render


def test_readme_shows_the_committed_results():
    results = render.committed()
    assert results, "no committed results: run `make bench`"
    assert render.readme_block() in render.README.read_text(), "run `python benchmarks/render.py`"
    assert all(row["checked"] for result in results for row in result["rows"])


def test_a_peer_that_is_not_installed_is_named():
    assert render._peers({"peers": {"EnergyFlow": None}}) == "EnergyFlow: not installed"
