"""What the benchmarks measure against: distillation as it is usually written, with files, PIL, torchvision and fp32.

Nothing is slowed down on purpose: the teacher is in eval mode without gradients, decoding and augmentation run in
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
    """Images decoded from their files and transformed each time they are asked for: (float [3, S, S], label)."""

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
    """A window and flips."""
    return transforms.Compose([transforms.Resize(resize), transforms.RandomCrop(size), transforms.RandomHorizontalFlip(),
                               transforms.RandomVerticalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def centre(size, resize):
    """What validation sees."""
    return transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(size), transforms.ToTensor(),
                               transforms.Normalize(MEAN, STD)])


class Loop:
    """Knowledge distillation of `student` from `teacher`, both plain modules on `device`."""

    def __init__(self, student, teacher, device, lr=1e-3, weight_decay=0.05):
        self.student, self.teacher, self.device = student.to(device), teacher.to(device).eval(), device
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=weight_decay)

    def step(self, images, labels):
        """images: float [N, 3, S, S], normalised. Returns the loss."""
        images, labels = images.to(self.device), labels.to(self.device)
        with torch.no_grad():
            teacher = self.teacher(images)
        student = self.student(images)
        soft = F.kl_div(F.log_softmax(student / TEMPERATURE, 1), F.softmax(teacher / TEMPERATURE, 1), reduction="batchmean")
        loss = ALPHA * F.cross_entropy(student, labels) + (1 - ALPHA) * TEMPERATURE ** 2 * soft
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    def epoch(self, loader):
        """One pass over the training images. Returns the mean loss."""
        self.student.train()
        losses = [self.step(images, labels) for images, labels in loader]
        return sum(losses) / len(losses)

    @torch.no_grad()
    def accuracy(self, loader):
        """The share of right answers."""
        self.student.eval()
        right = [self.student(images.to(self.device)).argmax(1).cpu() == labels for images, labels in loader]
        return torch.cat(right).float().mean().item()
