"""nbgrader's settings for the course: `make course` puts this file into _build/course, where nbgrader finds it."""

c = get_config()  # noqa: F821 - nbgrader runs this file, and knows the name

c.CourseDirectory.course_id = "vision-transformers"
# Seconds a cell may take. A hand-in that never ends is stopped here; each assignment as a whole takes less than this.
c.Execute.timeout = 60
# Hand-ins from a learning platform: downloaded/1_convolution/archive/ada-1_convolution.ipynb is Ada's.
c.FileNameCollectorPlugin.named_regexp = r".*[/\\](?P<student_id>[^/\\]+?)-(?P<file_id>\d_[a-z_]+)\.ipynb$"
