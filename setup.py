"""Packaging of captionbeam; Beam workers install the same package (`--setup_file`)."""

from pathlib import Path

from setuptools import setup

INSTALL_REQUIRES = [
    "tensorflow>=2.21,<2.22",
    "apache-beam>=2.77,<2.78",
    "tensorboard>=2.20",
    "tensorflow-serving-api>=2.21,<2.22",
    "numpy>=2.0",
    "pillow>=12.0",
    "pyarrow>=18",
    "pycocotools>=2.0.11",
    "pycocoevalcap>=1.2",
    "requests>=2.32",
    # From 2.6 a compressed body is decompressed no further than it is read.
    "urllib3>=2.6",
    # From 0.7 a rule with wildcards is matched in linear time.
    "protego>=0.7",
    "grpcio>=1.76",
    "grpcio-health-checking>=1.76",
    "grpcio-reflection>=1.76",
    "prometheus-client>=0.22",
    "starlette>=0.47",
    "uvicorn>=0.35",
    "google-crc32c>=1.7",
    "matplotlib>=3.10",
    "packaging>=24",
]
EXTRAS_REQUIRE = {
    "gcp": ["apache-beam[gcp]>=2.77,<2.78"],
    "aws": ["apache-beam[aws]>=2.77,<2.78"],
    "dask": ["apache-beam[dask]>=2.77,<2.78", "distributed>=2024.4.2"],
    "openvino": ["openvino>=2026.0"],
}
# What tests of the extras need: buckets are emulated on loopback.
EXTRAS_REQUIRE["dev"] = [
    *(requirement for requirements in EXTRAS_REQUIRE.values() for requirement in requirements),
    *(
        "pytest>=8",
        "pytest-xdist>=3",
        "hypothesis>=6.130",
        "ruff>=0.13",
        "mypy>=1.18",
        "types-requests",
    ),
    *("moto[s3,server]>=5", "gcp-storage-emulator>=2026.7"),
]

setup(
    name="captionbeam",
    version="0.1.0",
    description="Image captioning with visual attention: Beam, tf.distribute, TensorFlow Serving.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.12",
    py_modules=["captionbeam"],
    packages=["demo", "export", "model", "pipelines", "serving"],
    package_data={"model": ["recipes/*.json"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["captionbeam=captionbeam:main"]},
)
