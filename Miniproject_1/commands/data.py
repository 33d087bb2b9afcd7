"""Makes data in the course's format: `noise2noise data --help` is that of `Miniproject_1.others.data`."""

from Miniproject_1.others import data


def run(arguments):
    data.main(arguments)
    return 0
