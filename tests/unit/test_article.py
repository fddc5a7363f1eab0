"""The map from the article to the labs: current, complete, and honest about what no lab tests."""

from pathlib import Path

import pytest

from labkit.errors import UsageError
from labkit.labs import load_labs
from labkit.records.ledger import load_claims
from tools import article

CLAIMS, LABS, SECTIONS = load_claims(), load_labs(), article.load_sections()


def row(text: str, beginning: str) -> list[str]:
    """The cells of the table row that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(beginning))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_is_current() -> None:
    """docs/article.md is what `make article` writes from the data files as they are now."""
    assert article.PAGE.read_text(encoding="utf-8") == article.current()


def test_every_claim_stands_in_a_section_and_once_only() -> None:
    """No claim of the ledger is without a section of the article; no section names one twice or out of order."""
    assert {name for each in SECTIONS for name in each.claims} == set(CLAIMS)
    assert all(list(each.claims) == sorted(set(each.claims)) for each in SECTIONS)
    assert len({each.section for each in SECTIONS}) == len(SECTIONS)


def test_tested_is_only_what_a_rule_and_a_lab_make_so() -> None:
    """A claim that sources settle is tested nowhere; each lab tests exactly those of its claims that have a rule."""
    for claim in CLAIMS.values():
        assert claim.settled_by != "text" or not article.tested_in(claim, LABS)
    for name, lab in LABS.items():
        tested = {claim.id for claim in CLAIMS.values() if name in article.tested_in(claim, LABS)}
        assert tested == {one for one in lab.claims if CLAIMS[one].rule is not None}


def test_without_its_lab_a_claim_is_tested_nowhere() -> None:
    """When a lab's entry goes, its claims are no longer counted, and the page says that the lab is not written yet."""
    left = {name: lab for name, lab in LABS.items() if name != "03_prefix_caching"}
    before, after = (article.page(SECTIONS, CLAIMS, labs) for labs in (LABS, left))
    assert row(before, '| <a id="c06"')[5:] == ["[03](../notebooks/03_prefix_caching.ipynb)", ""]
    assert row(after, '| <a id="c06"')[5:] == ["no lab", "03 (not written yet)"]
    assert "03_prefix_caching.ipynb" not in after


def test_without_its_rule_a_claim_is_tested_nowhere() -> None:
    """A lab that lists a claim does not test it before there is a rule."""
    claim = CLAIMS["C06"].model_copy(update={"rule": None})
    assert article.tested_in(claim, LABS) == []
    assert article.told_in(claim, LABS) == ["03_prefix_caching"]


def test_the_numbers_are_counted() -> None:
    """With two claims, of which one has lost its lab, the page says one and none."""
    two = {"C06": CLAIMS["C06"], "C48": CLAIMS["C48"]}
    made = article.Section(section="Made", claims=("C06", "C48"))
    text = article.page([made], two, LABS)
    assert "2 claims, 1 are tested so; for 0 more" in text
    assert "C48 stand in no lab" in text


def test_links_lead_somewhere() -> None:
    """Every id that a section links to has its row, and every notebook linked to is one of the course's."""
    text = article.current()
    for name in CLAIMS:
        assert f"(#{name.lower()})" in text
        assert text.count(f'<a id="{name.lower()}"></a>') == 1
    assert {part.split(")")[0] for part in text.split("(../notebooks/")[1:]} <= {lab.notebook for lab in LABS.values()}


def test_an_unknown_claim_or_a_broken_file_is_refused(tmp_path: Path) -> None:
    """The section and the claim, or the file, are named."""
    with pytest.raises(UsageError, match="'Made': no claim C99"):
        article.page([article.Section(section="Made", claims=("C99",))], CLAIMS, LABS)
    file = tmp_path / "article.yaml"
    for text in ("- {section: A}", "- {section: A, claims: [C01], colour: red}", "[", "{}"):
        file.write_text(text)
        with pytest.raises(UsageError, match=r"article\.yaml is no list of sections"):
            article.load_sections(file)


def test_check_tells_an_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--check` ends with 1 for a page that is missing or old and writes nothing; the tool then writes it."""
    page = tmp_path / "article.md"
    monkeypatch.setattr(article, "PAGE", page)
    assert article.main(["--check"]) == 1
    assert not page.exists()
    assert article.main([]) == 0
    assert article.main(["--check"]) == 0
    page.write_text("old")
    assert article.main(["--check"]) == 1
