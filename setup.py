"""Map the top-level folders onto one import package, and let Beam's ``--setup_file`` ship it to workers."""

from setuptools import find_packages, setup

ROOMS = ("pipeline", "transforms", "io", "templates", "queries", "monitoring")

setup(
    packages=[f"itel_cabinet.{room}" for room in ROOMS]
    + [f"itel_cabinet.{room}.{package}" for room in ROOMS for package in find_packages(room)],
    package_dir={f"itel_cabinet.{room}": room for room in ROOMS},
    package_data={
        "itel_cabinet.transforms": ["*.yaml", "py.typed"],
        "itel_cabinet.transforms.contracts": ["shipped/*.yaml"],
        "itel_cabinet.pipeline": ["py.typed"],
        "itel_cabinet.pipeline.operate": ["*.j2", "*.css"],
        "itel_cabinet.io": ["py.typed"],
        "itel_cabinet.templates": ["*.yaml", "*.json", "kubernetes/*.yaml"],
        "itel_cabinet.queries": ["*.sql"],
        "itel_cabinet.monitoring": ["*.yml", "dashboards/*.json"],
    },
)
