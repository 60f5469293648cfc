"""Pictures with pixels that are known in advance."""

import numpy as np

from imagenet_jax.explain import pictures

GRAY = np.full((1, 3, 3), 128, np.uint8)


def test_overlays_go_from_blue_to_red():
    low, _, high = pictures.overlay(GRAY, np.array([[0.0, 0.5, 1.0]]))[0].astype(int)
    assert low[2] > low[0]
    assert high[0] > high[2]


def test_signed_overlays_show_the_image_where_the_heat_is_0():
    against, nothing, in_favor = pictures.signed_overlay(GRAY, np.array([[-0.2, 0, 0.2]]))[0]
    assert len(set(nothing)) == 1
    assert against[2] > against[0]
    assert in_favor[0] > in_favor[2]


def test_signed_values_are_symmetric_about_gray():
    found = pictures.signed(np.array([-2.0, -1.0, 0.0, 1.0, 2.0])).astype(int)
    np.testing.assert_array_equal(found, [0, 64, 128, 191, 255])
    np.testing.assert_array_equal(pictures.signed(np.zeros(2)), [128, 128])


def test_each_filter_is_scaled_by_itself():
    kernel = np.zeros((1, 1, 3, 2))
    kernel[0, 0, :, 0] = [0.01, 0, -0.01]
    kernel[0, 0, :, 1] = [100, 50, 0]
    sheet = pictures.grid(pictures.filter_tiles(kernel), zoom=2)
    assert sheet.shape == (2, 5, 3)
    np.testing.assert_array_equal(sheet[0, 0], [255, 128, 0])
    np.testing.assert_array_equal(sheet[1, 1], [255, 128, 0])
    np.testing.assert_array_equal(sheet[0, 2], [255, 255, 255])
    np.testing.assert_array_equal(sheet[0, 3], [255, 191, 128])


def test_the_strongest_maps_keep_their_order():
    maps = np.zeros((4, 5, 6))
    maps[..., 1], maps[..., 4], maps[..., 5] = 3, -9, 5
    np.testing.assert_array_equal(pictures.strongest(maps, 2), [4, 5])
    np.testing.assert_array_equal(pictures.strongest(maps, 100), np.arange(6))


def test_feature_maps_go_from_dark_to_bright():
    maps = np.arange(16.0).reshape(4, 4, 1)
    sheet = pictures.feature_maps(maps)
    assert sheet.shape == (32, 32, 3)
    brightness = sheet[::8, ::8].sum(-1, dtype=int).ravel()
    assert (np.diff(brightness) > 0).all()
