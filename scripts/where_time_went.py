"""A pytest plugin: after the run, one line a file with the seconds it took, the longest first."""

from collections import Counter


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
