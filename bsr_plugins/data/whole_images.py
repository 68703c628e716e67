"""Items of a validation or test dataset: whole images, each under every setting of a protocol."""

from __future__ import annotations

import torch
from torch import Tensor

from bsr_plugins.data.dataset_options import WholeImageOptions
from bsr_plugins.data.decode import to_tensor
from bsr_plugins.data.image_files import distinct_names, read_image
from bsr_plugins.degradations import Degradation, Params
from bsr_plugins.degradations.protocols import Setting, protocol_degradation, protocol_settings, with_noise_seed
from bsr_plugins.errors import BadImageError, OptionError, unknown_name
from bsr_plugins.seeding import derive_seed, generator_at


class WholeImages:
    """The items of phases val and test; see `PairedDegradationDataset`.

    Attributes:
        images: The images.
        names: The distinct file name of each, without an ending.
        settings: The protocol's settings under which every image comes; none without a protocol.
    """

    def __init__(self, options: WholeImageOptions) -> None:
        self._options = options
        self.settings: list[Setting] = []
        self._degradation: Degradation
        if options.protocol is None:
            self._degradation = options.build_degradation()
        else:
            settings = {setting.name: setting for setting in protocol_settings(options.protocol, options.scale)}
            chosen = settings if options.settings is None else options.settings
            for name in chosen:
                if name not in settings:
                    raise unknown_name(options.where("settings"), name, settings)
            self.settings = [setting for name, setting in settings.items() if name in chosen]
            self._degradation = protocol_degradation(options.protocol, options.scale)
        if self._degradation.needs_calibration:
            raise OptionError(
                f"{options.where('degradation')}: a sampler needs calibration on training images, "
                f"expected one that needs none in phase {options.phase}"
            )
        self.images = options.find_images()
        self.names = distinct_names(self.images)
        degraded: list[Params | None] = [setting.params for setting in self.settings]
        smallest = max(map(self._degradation.smallest_side, degraded or [None]))
        for image in self.images:
            side = min(image.height, image.width)
            if side - side % options.scale < smallest:
                raise BadImageError(
                    f"{image.path}: is {image.width}x{image.height}, expected both sides at least {smallest} for the "
                    "degradation's kernels, once cropped to multiples of the scale"
                )

    def __len__(self) -> int:
        return len(self.images) * (len(self.settings) or 1)

    def item(self, index: int) -> dict[str, Tensor | str]:
        """Make an item, with the true blur `kernel` (k, k) where there is one; an image's settings come in a row."""
        number, place = divmod(index, len(self.settings) or 1)
        image, scale = self.images[number], self._options.scale
        gt = to_tensor(read_image(image))
        _, height, width = gt.shape
        gt = gt[:, : height - height % scale, : width - width % scale].contiguous()
        seed, suffix = self._options.seed, ""
        if not self.settings:
            params = self._degradation.sample(1, generator_at(seed, "whole image", image.name))
        else:
            setting = self.settings[place]
            params = with_noise_seed(setting.params, derive_seed(seed, "whole image", image.name, setting.name))
            suffix = f"_{setting.name}"
        with torch.no_grad():
            gt = self._degradation.target(gt[None])[0]
            lq = self._degradation(gt[None, None], params)
        item: dict[str, Tensor | str] = {"lq": lq[0, 0].contiguous(), "gt": gt}
        if self._degradation.kernel_size is not None:
            item["kernel"] = self._degradation.kernels(params)[0]
        return item | {"lq_path": f"{self.names[number]}{suffix}.png", "gt_path": image.path}
