"""Run a program that names its files relatively: ``at.py DIRECTORY PROGRAM``."""

import os
import runpy
import sys

directory, program = sys.argv[1:]
os.chdir(directory)
sys.argv = [program]
sys.path[0] = os.path.dirname(program)
runpy.run_path(program, run_name="__main__")
