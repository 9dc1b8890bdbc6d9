"""A pytest plugin: the checks of MONAI's model zoo as a table, one row per check and one column per bundle.

A test names its check with ``@pytest.mark.zoo(check="files")``, and has a parameter ``kind``, the bundle.
"""

_WORDS = {"passed": "passes", "failed": "FAILS", "error": "FAILS"}


def pytest_configure(config):
    config.addinivalue_line("markers", "zoo(check): a check of MONAI's model zoo; run by `make zoo-check`")


def pytest_collection_modifyitems(items):
    for item in items:
        kind = getattr(item, "callspec", None) and item.callspec.params.get("kind")
        item.user_properties.extend(("zoo", (mark.kwargs["check"], str(kind))) for mark in item.iter_markers("zoo"))


def pytest_terminal_summary(terminalreporter, config):
    if "zoo" not in (config.option.markexpr or ""):
        return
    results = {}
    for outcome, word in _WORDS.items():
        for report in terminalreporter.getreports(outcome):
            properties = getattr(report, "user_properties", ())
            for check, kind in (value for name, value in properties if name == "zoo"):
                if results.setdefault(check, {}).get(kind) != "FAILS":
                    results[check][kind] = word
    if not results:
        return
    kinds = sorted({kind for row in results.values() for kind in row})
    terminalreporter.section("model zoo")
    terminalreporter.line(f"{'check':<24}" + "".join(f"{kind:<20}" for kind in kinds))
    for check, row in results.items():
        terminalreporter.line(f"{check:<24}" + "".join(f"{row.get(kind, '-'):<20}" for kind in kinds))
