"""Runs the App of the shop until nothing is left to do."""

import asyncio
import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
django.setup()

from shop.messages import app


async def main() -> None:
    async with app.running() as running:
        await asyncio.wait_for(running.settled(), 40)


asyncio.run(main())
