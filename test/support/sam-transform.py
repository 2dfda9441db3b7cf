"""Prints what CloudFormation gets of a SAM template, as JSON. Needs no account: the code's place is made up.

sam-transform.py TEMPLATE
"""
import json
import os
import sys

os.environ.setdefault("AWS_DEFAULT_REGION", "eu-central-1")

from samtranslator.parser.parser import Parser
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse


class NoManagedPolicies:
    """SAM looks up policies by name; ours names none."""

    def load(self):
        return {}


with open(sys.argv[1], encoding="utf8") as file:
    template = yaml_parse(file)
template["Globals"]["Function"]["CodeUri"] = "s3://code/functions.zip"
json.dump(transform(template, {}, NoManagedPolicies()), sys.stdout)
