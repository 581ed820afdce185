"""Classifiers of the user's own: their classes are matched by name, or they are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from torch import Tensor, nn

from hf_condense import Teacher
from hf_condense.networks.teachers import _check_processor, resize
from tests.support.pretend_device import pretend_device

COLOURS = ["red", "green", "blue"]
PIXELS = torch.eye(3).reshape(3, 3, 1, 1).expand(-1, -1, 4, 4)  # one image of each colour


def means(images: torch.Tensor) -> torch.Tensor:
    """Score an image by the mean of each channel."""
    return images.mean((2, 3))


class TestClasses:
    def test_order_of_the_dataset_is_restored(self) -> None:
        logits = Teacher(means, COLOURS).in_order(["blue", "red", "green"])(PIXELS)
        assert logits.argmax(1).tolist() == [1, 2, 0]

    def test_superfluous_classes_are_left_out(self) -> None:
        logits = Teacher(means, COLOURS).in_order(["blue", "green"])(PIXELS)
        assert logits.shape == (3, 2)
        assert logits[1:].argmax(1).tolist() == [1, 0]

    def test_case_and_separators_do_not_matter(self) -> None:
        teacher = Teacher(means, ["Fire_Truck", "polar bear", "T-shirt"])
        assert teacher.in_order(["t shirt", "fire-truck", "POLAR_BEAR"])(PIXELS).argmax(1).tolist() == [1, 2, 0]

    def test_names_that_differ_in_case_only_are_told_apart(self) -> None:
        teacher = Teacher(means, ["a", "A", "b"])
        assert teacher.in_order(["A", "b", "a"])(PIXELS).argmax(1).tolist() == [2, 0, 1]
        with pytest.raises(ValueError, match="does not know 'B'"):
            teacher.in_order(["a", "A", "B"])

    def test_class_of_the_dataset_that_is_like_another_one_raises_value_error(self) -> None:
        with pytest.raises(ValueError, match="it does not know 'RED'"):
            Teacher(means, COLOURS).in_order(["red", "RED"])

    def test_unknown_class_raises_value_error_with_both_lists_side_by_side(self) -> None:
        with pytest.raises(ValueError, match=r"it does not know 'pink'\. Classes are matched by name") as error:
            Teacher(means, COLOURS, name="eye").in_order(["red", "pink"])
        assert "Teacher(predict, classes=[...])" in str(error.value)
        assert "dataset | teacher\nred     | red\npink    | green\n        | blue" in str(error.value)

    def test_names_without_rows_are_left_out_as_the_message_says(self) -> None:
        """A dataset that was filtered keeps the names of all classes."""
        features = Features({"image": Value("int8"), "label": ClassLabel(names=["red", "pink", "green", "blue"])})
        ds = Dataset.from_dict({"image": [7, 5, 6, 8], "label": [3, 0, 2, 3]}, features=features).filter(
            lambda row: row["label"] != 2
        )
        teacher = Teacher(means, ["blue", "red"])
        with pytest.raises(ValueError, match="it does not know 'pink', 'green'") as error:
            teacher.in_order(ds.features["label"].names)
        assert "classes=[...]" not in str(error.value), "the names of the teacher are right"
        code = str(error.value).partition("leave these names out of the ClassLabel: ")[2]
        scope = {"ds": ds}
        exec(code, scope)
        assert scope["ds"].features["label"].names == ["blue", "red"]
        assert scope["ds"].to_dict() == {"image": [7, 5, 8], "label": [0, 1, 0]}
        teacher.in_order(scope["ds"].features["label"].names)

    def test_numbers_in_place_of_names_raise_value_error(self) -> None:
        with pytest.raises(ValueError, match="the classes of the teacher 'means' are not those of the dataset"):
            Teacher(means, ["LABEL_0", "LABEL_1", "LABEL_2"]).in_order(COLOURS)

    @pytest.mark.parametrize("classes", [[], ["a", "a"]])
    def test_classes_without_different_names_raise_value_error(self, classes: list[str]) -> None:
        with pytest.raises(ValueError, match="should have different names"):
            Teacher(means, classes)

    @pytest.mark.parametrize("classes", [3, None, "cat"])
    def test_classes_that_are_no_list_of_names_raise_type_error(self, classes: object) -> None:
        with pytest.raises(TypeError, match=rf"classes should be the names .*; got {classes!r} \("):
            Teacher(means, classes)


class TestImages:
    def test_images_are_normalised_and_resized(self) -> None:
        seen = []

        def record(images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return means(images)

        pixels = torch.rand(2, 3, 8, 8)
        Teacher(record, COLOURS, mean=[0.1, 0.2, 0.3], std=0.5, image_size=4).logits(pixels)
        expected = (resize(pixels, (4, 4)) - torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1)) / 0.5
        torch.testing.assert_close(seen[0], expected)

    def test_grey_images_are_repeated_for_a_teacher_of_colours(self) -> None:
        logits = Teacher(means, COLOURS, mean=[0.0, 0.0, 0.0]).logits(torch.full((2, 1, 4, 4), 0.5))
        torch.testing.assert_close(logits, torch.full((2, 3), 0.5))

    def test_module_is_evaluated_and_can_be_trained_further(self) -> None:
        net = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 3))
        teacher = Teacher(net.train(), COLOURS)
        assert torch.equal(teacher.logits(PIXELS), teacher.logits(PIXELS))
        assert not teacher.logits(PIXELS).requires_grad
        assert all(p.requires_grad for p in net.parameters())

    @pytest.mark.parametrize("size", [(8,), (1, 2, 3)])
    def test_size_of_other_than_two_sides_raises_value_error(self, size: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"image_size should be a side or \(height, width\); got \("):
            Teacher(means, COLOURS, image_size=size)

    def test_output_of_another_shape_raises_value_error(self) -> None:
        with pytest.raises(ValueError, match=r"should return logits \(3, 2\); it returned \(3, 3\)"):
            Teacher(means, ["red", "green"]).logits(PIXELS)
        with pytest.raises(ValueError, match="it returned tuple"):
            Teacher(lambda images: (images,), COLOURS).logits(PIXELS)

    def test_images_of_another_size_raise_value_error_with_advice(self) -> None:
        teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), COLOURS)
        with pytest.raises(ValueError, match=r"cannot take images of shape \(3, 4, 4\).*pass image_size= to Teacher"):
            teacher.logits(PIXELS)

    @pytest.mark.parametrize(
        "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
    )
    def test_lack_of_memory_is_not_blamed_on_the_size(self, error: RuntimeError) -> None:
        def fail(images: Tensor) -> Tensor:
            raise error

        with pytest.raises(type(error), match=str(error)) as caught:
            Teacher(fail, COLOURS).logits(PIXELS)
        assert caught.value is error

    def test_something_that_cannot_be_called_raises_type_error(self) -> None:
        with pytest.raises(TypeError, match="should be a function or a module; got 5"):
            Teacher(5, COLOURS)

    def test_std_of_zero_raises_value_error(self) -> None:
        with pytest.raises(ValueError, match="std of a teacher should be positive"):
            Teacher(means, COLOURS, std=[1, 0, 1])


class TestLibraries:
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_torchvision_network_has_the_weights_of_the_file(self, suffix: str, tmp_path: Path) -> None:
        import safetensors.torch
        from torchvision import models

        net = models.squeezenet1_1(num_classes=3).eval()
        file = tmp_path / f"net{suffix}"
        if suffix == ".pth":
            torch.save({"state_dict": net.state_dict()}, file)
        else:
            safetensors.torch.save_file(net.state_dict(), file)
        teacher = Teacher.from_torchvision("squeezenet1_1", file, COLOURS)
        pixels = torch.rand(2, 3, 32, 32)
        mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        with torch.no_grad():
            torch.testing.assert_close(teacher.logits(pixels), net((pixels - mean) / std))

    def test_weights_of_another_network_raise_value_error(self, tmp_path: Path) -> None:
        torch.save({"weight": torch.zeros(3)}, tmp_path / "net.pth")
        with pytest.raises(ValueError, match="does not hold the weights of 'squeezenet1_1'"):
            Teacher.from_torchvision("squeezenet1_1", tmp_path / "net.pth", COLOURS)

    def test_weights_that_hold_other_objects_are_refused(self, tmp_path: Path) -> None:
        torch.save(nn.Linear(2, 3), tmp_path / "net.pth")  # a whole network, which runs code when it is read
        with pytest.raises(ValueError, match="may run code; save the state dict"):
            Teacher.from_torchvision("squeezenet1_1", tmp_path / "net.pth", COLOURS)
        torch.save([torch.zeros(3)], tmp_path / "list.pth")
        with pytest.raises(ValueError, match="does not hold the weights of 'squeezenet1_1'"):
            Teacher.from_torchvision("squeezenet1_1", tmp_path / "list.pth", COLOURS)

    def test_timm_network_has_the_weights_of_the_file(self, tmp_path: Path) -> None:
        timm = pytest.importorskip("timm", reason="timm is not installed")
        net = timm.create_model("test_vit", num_classes=3).eval()
        torch.save(net.state_dict(), tmp_path / "net.pth")
        teacher = Teacher.from_timm("test_vit", tmp_path / "net.pth", COLOURS)
        facts = timm.data.resolve_model_data_config(net)
        pixels = torch.rand(2, 3, *facts["input_size"][1:])
        mean, std = (torch.tensor(facts[name]).reshape(3, 1, 1) for name in ("mean", "std"))
        with torch.no_grad():
            torch.testing.assert_close(teacher.logits(pixels), net((pixels - mean) / std))

    def test_classifier_of_transformers_has_its_own_names_and_normalisation(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", id2label=dict(enumerate(COLOURS))
        )
        net = transformers.ResNetForImageClassification(config).eval()
        net.save_pretrained(tmp_path)
        transformers.ConvNextImageProcessor(
            size={"shortest_edge": 16}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.5, 0.5]
        ).save_pretrained(tmp_path)
        teacher = Teacher.from_transformers(tmp_path)
        assert (teacher.classes, teacher.image_size) == (tuple(COLOURS), (16, 16))
        pixels = torch.rand(2, 3, 16, 16)
        with torch.no_grad():
            expected = net((pixels - torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1)) / 0.5).logits
        torch.testing.assert_close(teacher.logits(pixels), expected)

    def test_name_of_no_classifier_of_transformers_raises_an_error_that_says_what_is_right(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("transformers", reason="transformers is not installed")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "config.json").write_text('{"model_type": "bert"}')
        for name, error in (("resnet18", OSError), ("text", ValueError)):
            with pytest.raises(error, match=f"holds an image classifier of transformers; got '{name}'"):
                Teacher.from_transformers(name)

    @pytest.mark.parametrize(
        "processor",
        [{"do_flip_channel_order": True}, {"include_top": True}, {"rescale_factor": 1 / 127.5}, {"do_rescale": False}],
    )
    def test_processor_that_does_more_to_pictures_raises_value_error(self, processor: dict[str, Any]) -> None:
        (name,) = processor
        with pytest.raises(ValueError, match=rf"the processor of 'mine' has {name}=.*Teacher\(predict, classes\)"):
            _check_processor(processor, "mine")
        _check_processor({"do_rescale": True, "rescale_factor": 1 / 255, "do_flip_channel_order": False}, "mine")


class TestDevices:
    def test_module_is_moved_where_the_images_are_but_only_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        moves = []
        net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.BatchNorm1d(3))
        move = net.to
        monkeypatch.setattr(net, "to", lambda device: moves.append(device) or move(device))
        teacher, gpu = Teacher(net, COLOURS), torch.device("cuda", 0)
        on_cpu = teacher.logits(PIXELS)
        assert not moves
        with pretend_device():
            pixels = PIXELS.to(gpu)
            for _ in range(3):
                torch.testing.assert_close(teacher.logits(pixels).cpu(), on_cpu)
            assert moves == [gpu]
            assert teacher.logits(PIXELS).device.type == "cpu"
            net[2].running_mean = net[2].running_mean.to(gpu)  # a buffer alone
            teacher.logits(PIXELS)
        assert [device.type for device in moves] == ["cuda", "cpu", "cpu"]

    def test_module_without_tensors_may_move_what_else_it_has(self) -> None:
        class Own(nn.Module):
            def to(self, device: torch.device) -> nn.Module:
                self.columns = torch.arange(3, device=device)
                return self

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return means(images)[:, self.columns]

        assert Teacher(Own(), COLOURS).logits(PIXELS).argmax(1).tolist() == [0, 1, 2]


def test_hash_of_a_function_is_that_of_its_classes_in_their_order() -> None:
    hashes = {Teacher(means, names).content_hash for names in (COLOURS, COLOURS[::-1], ["red", "green", "pink"])}
    assert len(hashes) == 3
    assert Teacher(means, COLOURS).content_hash in hashes
