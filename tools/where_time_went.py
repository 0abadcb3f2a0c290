"""A pytest plugin: notebooks that run elsewhere keep their names; after the run, a line a file with its seconds."""

from collections import Counter

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path, parent):
    nodes = yield
    if file_path.is_relative_to(parent.config.rootpath):
        return nodes
    # pytest has no name for what lies outside of the book's folder.
    return [type(node).from_parent(parent, path=file_path, nodeid=f"notebooks/{file_path.name}") for node in nodes]


def pytest_terminal_summary(terminalreporter):
    seconds, tests = Counter(), Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if not hasattr(report, "duration") or not hasattr(report, "nodeid"):
                continue
            file = report.nodeid.partition("::")[0]
            seconds[file] += report.duration
            tests[file] += getattr(report, "when", "call") == "call"
    if not seconds:
        return
    terminalreporter.section("where the time went")
    for file, total in seconds.most_common():
        terminalreporter.write_line(f"{total:7.1f} s  {file} ({tests[file]})")
