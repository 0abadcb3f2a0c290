"""nbgrader's settings for the course: `make course` puts this file into _build/course, where nbgrader finds it."""

c = get_config()  # noqa: F821 - nbgrader runs this file, and knows the name

c.CourseDirectory.course_id = "vision-transformers"
# Seconds a cell may take; a hand-in that never ends is stopped here. Solved, no cell takes a fifth of it on two cores.
c.Execute.timeout = 60
# Whose a file is, by its name below downloaded/1_convolution/archive: ada-1_convolution.ipynb; Canvas's
# lovelaceada_123_456_1_convolution-2.ipynb; Moodle's "Ada Lovelace_123_assignsubmission_file/1_convolution.ipynb".
c.FileNameCollectorPlugin.named_regexp = (
    r".*[/\\](?!(?:extracted|\d_[a-z_]+)[/\\])(?P<student_id>[^/\\]+)[-_/\\]"
    r"(?P<file_id>\d_[a-z_]*[a-z])(?:[- (]+\d+\)?)?\.ipynb$"
)
