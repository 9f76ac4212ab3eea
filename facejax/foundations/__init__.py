"""Methods that faces borrow from: attention, bottlenecks, second-order pooling, deformation, visualisation."""
