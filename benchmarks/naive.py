"""The reference of the benchmarks: distillation as it is usually written, with image files, PIL, torchvision and fp32.

Nothing is slowed down on purpose: the teacher is in eval mode without gradients, and decoding and augmentation run in
the workers of a DataLoader.
"""

import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

from kd.data import augment
from kd.image import MEAN, STD

TEMPERATURE, ALPHA = 4.0, 0.5


class Files(torch.utils.data.Dataset):
    """A data set of (float image [3, S, S], label) that decodes and transforms a file at each access."""

    def __init__(self, paths, labels, transform):
        self.paths, self.labels, self.transform = paths, labels, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, position):
        return self.transform(Image.open(self.paths[position]).convert("RGB")), int(self.labels[position])


def heavy(size):
    """The augmentation of kd.data.augment in torchvision's transforms of one PIL image."""
    return transforms.Compose([
        transforms.RandomResizedCrop(size, augment.SCALE, augment.RATIO),
        transforms.RandomHorizontalFlip(),
        transforms.RandomChoice([transforms.RandomRotation((angle, angle)) for angle in (0, 90, 180, 270)]),
        transforms.ColorJitter(augment.BRIGHTNESS, augment.CONTRAST, augment.SATURATION),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
        transforms.RandomErasing(augment.ERASE, augment.ERASE_SCALE, (1 / 3, 3))])


def light(size, resize):
    """A random crop and flips."""
    return transforms.Compose([
        transforms.Resize(resize),
        transforms.RandomCrop(size),
        transforms.RandomHorizontalFlip(),
        transforms.RandomVerticalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD)])


def centre(size, resize):
    """The transform of validation, without random draws."""
    return transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(size), transforms.ToTensor(),
                               transforms.Normalize(MEAN, STD)])


class Loop:
    """Knowledge distillation of `student` from `teacher`, both plain modules on `device`; None: from labels alone."""

    def __init__(self, student, teacher, device, lr=1e-3, weight_decay=0.05):
        self.student, self.teacher, self.device = student.to(device), teacher and teacher.to(device).eval(), device
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=weight_decay)

    def step(self, images, labels):
        """One optimisation step on normalised float images [N, 3, S, S] and labels [N]. Returns the loss, a float."""
        images, labels = images.to(self.device), labels.to(self.device)
        student_logits = self.student(images)
        loss = F.cross_entropy(student_logits, labels)
        if self.teacher:
            with torch.no_grad():
                teacher_probabilities = F.softmax(self.teacher(images) / TEMPERATURE, 1)
            soft = F.kl_div(F.log_softmax(student_logits / TEMPERATURE, 1), teacher_probabilities,
                            reduction="batchmean")
            loss = ALPHA * loss + (1 - ALPHA) * TEMPERATURE ** 2 * soft
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    def epoch(self, loader):
        """One pass over a DataLoader of training images. Returns the mean loss."""
        self.student.train()
        losses = [self.step(images, labels) for images, labels in loader]
        return sum(losses) / len(losses)

    @torch.no_grad()
    def answers(self, loader):
        """(labels, the student's answers), [N] ints each, of the images in a DataLoader."""
        self.student.eval()
        found = [(labels, self.student(images.to(self.device)).argmax(1).cpu()) for images, labels in loader]
        return tuple(torch.cat(column).numpy() for column in zip(*found))
