"""zarrs' codecs for the arrays that ask for them, and for no others."""

from concurrent.futures import ThreadPoolExecutor
from time import sleep

import zarr

from scrna.data.codecs import fast_codecs


def pipeline():
    return zarr.config.get("codec_pipeline.path")


def test_threads_leave_the_setting_as_it_was():
    before = pipeline()

    def use(pause):
        with fast_codecs():
            sleep(pause)
            return pipeline()

    with ThreadPoolExecutor(8) as pool:
        within = list(pool.map(use, [0.01, 0, 0.02, 0, 0.01, 0, 0, 0.02]))
    assert set(within) == {"zarrs.ZarrsCodecPipeline"}
    assert pipeline() == before != within[0]
