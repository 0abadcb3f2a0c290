"""nbgrader's settings for the course: `make course` puts this file into _build/course, where nbgrader finds it."""

c = get_config()  # noqa: F821 - nbgrader runs this file, and knows the name

c.CourseDirectory.course_id = "vision-transformers"


def seconds(cell) -> int:
    """How long a cell may take: a minute for answers and tests, so a hand-in that never ends is stopped.

    What stands around them, above all the first import, may take long on a busy machine.
    """
    told = cell.metadata.get("nbgrader", {})
    return 60 if told.get("grade") or told.get("solution") else 600


c.Execute.timeout_func = seconds
# Seconds for a stopped cell to say so; after nbgrader's own 4, a busy machine leaves the hand-in without any grade.
c.Execute.iopub_timeout = 300
# Whose a file is, by its name below downloaded/1_convolution/archive: ada-1_convolution.ipynb; Canvas's
# lovelaceada_123_456_1_convolution-2.ipynb; Moodle's "Ada Lovelace_123_assignsubmission_file/1_convolution.ipynb".
c.FileNameCollectorPlugin.named_regexp = (
    r".*[/\\](?!(?:extracted|\d_[a-z_]+)[/\\])(?P<student_id>[^/\\]+)[-_/\\]"
    r"(?P<file_id>\d_[a-z_]*[a-z])(?:[- (]+\d+\)?)?\.ipynb$"
)
