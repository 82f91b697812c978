"""Orders by HTTP."""

from django.urls import path
from shop import views

urlpatterns = [path("orders/<int:number>", views.order), path("lost/<int:number>", views.lost)]
