"""Labs: what teachers and students start: building the guests, courses, grading."""
